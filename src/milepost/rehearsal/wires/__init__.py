"""The wires of a rehearsal: routes that answer with the encoders of `milepost.wire`, and never with others."""

from __future__ import annotations

from collections.abc import Iterable

from milepost.rehearsal.http import Refuse, Route, refuse_problem
from milepost.rehearsal.wires import glance, huawei, keystone, native, qiniu

REFUSALS: dict[str, Refuse] = {
    "native": refuse_problem,
    "glance": glance.refuse,
    "huawei": huawei.refuse,
    "qiniu": qiniu.refuse,
    "keystone": keystone.refuse,
}


def routes(wires: Iterable[str]) -> list[Route]:
    """Those of these wires; what is polled comes first."""
    known = {"native": native.routes, "glance": glance.routes, "huawei": huawei.routes, "qiniu": qiniu.routes}
    return [*(route for wire in wires for route in known[wire]()), *keystone.routes()]


__all__ = ["REFUSALS", "routes"]
