"""Durable jobs for slow cloud work, and one client for every cloud's jobs."""
