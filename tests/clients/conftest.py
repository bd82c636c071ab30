"""The fixtures of every vendor's tests: see `client_rig`."""

from client_rig import server, sources

__all__ = ["server", "sources"]
