"""Qiniu's URLs: object storage, and persistent processing of what is stored.

Every role of Qiniu's hosts (uc, up, rs, rsf, api, io) is played by this one; their paths do not collide with each other nor with
the other vendors'.  Downloads have a path and hosts of their own, because at Qiniu they are `GET /<key>`.

Rules
1. A path may hold anything: keys in base64 may be empty, and decoded ones may have line feeds.
2. What Python sends as POST and Go as GET is answered for both.
"""

from __future__ import annotations

from starlette.convertors import Convertor, register_url_convertor
from starlette.routing import BaseRoute, Route

from milepost.server.facades.qiniu import blocks, buckets, downloads, objects, parts, pfop, uploads
from milepost.server.facades.qiniu.endpoint import Endpoint, Handler
from milepost.server.state import AppState
from milepost.wire.qiniu.objects import OPERATIONS, region_v2, region_v4
from milepost.wire.qiniu.pfop import STATUS_PATH, SUBMIT_PATH


class _Text(Convertor[str]):
    """One path segment, which may be empty."""

    regex = "[^/]*"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


class _Anything(_Text):
    """The rest of the path, whatever it holds."""

    regex = r"[\s\S]*"


register_url_convertor("qn", _Text())
register_url_convertor("qnrest", _Anything())


def routes(state: AppState) -> list[BaseRoute]:
    """What is asked most comes first."""
    status = pfop.StatusQuery(state.store).show
    upload = "/buckets/{bucket:qn}/objects/{key:qn}/uploads"
    return [
        Route(STATUS_PATH, Endpoint(signed=False, GET=status, POST=status)),
        *(Route(path, Endpoint(POST=pfop.start_pfop)) for path in (SUBMIT_PATH, SUBMIT_PATH + "/")),
        Route("/objects/{bucket:qn}/{key:qnrest}", Endpoint(signed=False, GET=downloads.download)),
        *(Route(f"/{name}/{{rest:qnrest}}", _operation(name)) for name in OPERATIONS),
        _both("/list", objects.list_objects),
        Route("/batch", Endpoint(POST=objects.batch)),
        Route("/", Endpoint(signed=False, POST=uploads.upload_form), methods=["POST"]),
        Route(upload, Endpoint(signed=False, POST=parts.begin)),
        Route(upload + "/{upload_id:qn}/{number:qn}", Endpoint(signed=False, PUT=parts.put_part)),
        Route(
            upload + "/{upload_id:qn}",
            Endpoint(signed=False, POST=parts.complete, GET=parts.list_parts, DELETE=parts.abort),
        ),
        Route("/mkblk/{size:qn}", Endpoint(signed=False, POST=blocks.make_block)),
        Route("/bput/{ctx:qn}/{offset:qn}", Endpoint(signed=False, POST=blocks.put_chunk)),
        Route("/mkfile/{rest:qnrest}", Endpoint(signed=False, POST=blocks.make_file)),
        Route("/putb64/{rest:qnrest}", Endpoint(signed=False, POST=uploads.upload_base64)),
        Route("/fetch/{url:qn}/to/{entry:qn}", Endpoint(POST=objects.fetch)),
        _query("/v4/query", buckets.query_region(region_v4)),
        _query("/v2/query", buckets.query_region(region_v2)),
        _both("/buckets", buckets.list_buckets),
        _both("/v3/buckets", buckets.list_infos),
        _both("/v2/bucketInfos", buckets.list_infos),
        _both("/v2/bucketInfo", buckets.show_bucket),
        _both("/v2/domains", buckets.show_domains),
        _both("/v6/domain/list", buckets.show_domains),
        Route("/mkbucketv3/{bucket:qn}", Endpoint(POST=buckets.create_bucket)),
        Route("/mkbucketv3/{bucket:qn}/region/{region:qn}", Endpoint(POST=buckets.create_bucket)),
        Route("/drop/{bucket:qn}", Endpoint(POST=buckets.drop_bucket)),
        Route("/private", Endpoint(POST=buckets.change_bucket)),
    ]


def _operation(name: str) -> Endpoint:
    handler = objects.operate(name)
    return Endpoint(GET=handler, POST=handler) if name == "stat" else Endpoint(POST=handler)


def _both(path: str, handler: Handler) -> BaseRoute:
    return Route(path, Endpoint(GET=handler, POST=handler))


def _query(path: str, handler: Handler) -> BaseRoute:
    return Route(path, Endpoint(signed=False, GET=handler))
