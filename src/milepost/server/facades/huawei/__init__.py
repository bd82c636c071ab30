"""Huawei Cloud's URLs: the job query, block storage (EVS) and servers (ECS), beside the other wires on the same port.

Rules
1. A path of these services that this server does not have is a route that their gateway does not know: 404 APIGW.0101.
2. `/v2/…` and `/v3/…` have other wires too, so there only the services' own words are answered so.
Source: huaweicloudsdkecs and huaweicloudsdkevs; chnsz/golangsdk openstack/ecs, openstack/evs, openstack/compute/v2.
"""

from __future__ import annotations

from starlette.convertors import Convertor, register_url_convertor
from starlette.routing import BaseRoute, Route

from milepost.server.facades.huawei import ecs, evs
from milepost.server.facades.huawei.endpoint import Endpoint
from milepost.server.facades.huawei.jobs import JobQuery
from milepost.server.state import AppState
from milepost.wire.huawei.errors import Service


class _Word(Convertor[str]):
    """A word of these services in paths that other wires have too."""

    regex = "cloudvolumes|cloudservers|cloudsnapshots|volumes|recycle-bin-volumes|os-volume-transfer|jobs|launch-templates"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


class _Version(_Word):
    regex = r"v1|v1\.0|v1\.1|v2\.1|v5"


class _NovaWord(_Word):
    regex = "servers|flavors|os-keypairs|os-availability-zone|cloudvolumes|cloudservers"


class _SharedVersion(_Word):
    regex = "v2|v3"


register_url_convertor("huawei_word", _Word())
register_url_convertor("huawei_nova", _NovaWord())
register_url_convertor("huawei_version", _Version())
register_url_convertor("huawei_shared", _SharedVersion())


def routes(state: AppState) -> list[BaseRoute]:
    """The job query is polled most."""
    show = Endpoint(Service.ECS, GET=JobQuery(state.store).show)
    return [
        Route("/v1/{project_id}/jobs/{job_id}", show),
        Route("/v1.0/{project_id}/jobs/{job_id}", show),
        *evs.routes(),
        *ecs.routes(),
        # Before Glance, of which v2.1 is a version too.
        Route("/v2.1/{project_id}/{word:huawei_nova}", Endpoint(Service.ECS)),
        Route("/v2.1/{project_id}/{word:huawei_nova}/{rest:path}", Endpoint(Service.ECS)),
    ]


def unknown_routes() -> list[BaseRoute]:
    """Rules 1 and 2; for behind all other wires, which have some of these versions too."""
    return [
        Route("/{version:huawei_version}/{project_id}/{rest:path}", Endpoint(Service.ECS)),
        Route("/{version:huawei_shared}/{project_id}/{word:huawei_word}", Endpoint(Service.ECS)),
        Route("/{version:huawei_shared}/{project_id}/{word:huawei_word}/{rest:path}", Endpoint(Service.ECS)),
    ]
