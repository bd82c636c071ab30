"""Fixtures of the server's tests; what they are made of is in `server_house`."""

from __future__ import annotations

from server_house import crowd, house, web

__all__ = ["crowd", "house", "web"]
