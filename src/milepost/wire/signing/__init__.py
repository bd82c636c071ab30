"""Signed requests: who made them and that nobody changed them, one file a cloud.  Pure: no I/O, no clock, no keys of its own."""
