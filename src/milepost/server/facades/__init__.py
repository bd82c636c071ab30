"""Vendors' URLs on the same port.  Each module has `routes(state) -> list[BaseRoute]`; its handlers are Starlette endpoints.

A facade's endpoint finds `request.app.state` (`server.state.AppState`) and its caller with
`await identify(request.scope)` (`server.auth`).  The request's id is in `request.scope["request_id"]` (`req-` and a UUID); the
server adds `X-Request-Id` to every answer.  An error that leaves an endpoint is answered as a native problem, so a facade
catches `MilepostError` itself and answers it in its vendor's manner.
"""

from __future__ import annotations

from starlette.routing import BaseRoute

from milepost.server.state import AppState


def all_routes(state: AppState) -> list[BaseRoute]:
    """Every vendor's routes.  The native paths are looked at first, so no facade can hide one."""
    from milepost.server.facades import glance, huawei, iam, keystone, qiniu  # they import this package's parent

    # The most polled first, because the router tries one after the other; last what is answered as unknown.
    return [
        *huawei.routes(state),
        *qiniu.routes(state),
        *glance.routes(state),
        *keystone.routes(state),
        *iam.routes(state),
        *huawei.unknown_routes(),
    ]
