"""Qiniu's URLs: object storage, and persistent processing of what is stored."""

from __future__ import annotations

from starlette.routing import BaseRoute

from milepost.server.state import AppState


def routes(_: AppState) -> list[BaseRoute]:
    """Its routes; what is polled comes first."""
    return []
