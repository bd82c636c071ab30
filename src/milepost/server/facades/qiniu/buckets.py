"""Buckets over HTTP, and the region queries that the SDKs make before anything else: this server is every host of its region.

Rules
1. A new bucket is private where the server has auth, public where it has none; at Qiniu it is public.
2. A region query has no signature.  It is answered for buckets of the access key's project only.
Source: qiniu/python-sdk qiniu/http/regions_provider.py and services/storage/bucket.py; qiniu/go-sdk storage/bucket_uc.go.
"""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.responses import Response

from milepost.errors import NotFound, Unauthenticated
from milepost.server.facades.qiniu.endpoint import Call, Handler, json_response, open_owner
from milepost.server.facades.qiniu.incoming import buckets_of
from milepost.wire.qiniu import errors, objects
from milepost.wire.qiniu.errors import Refusal, no_such_bucket

REGION = "z0"


def host_of(call: Call) -> str:
    """`host:port` that this client reaches the server by."""
    return urlsplit(call.base_url).netloc


def domains_of(call: Call, bucket: str) -> list[str]:
    """Where the bucket's objects are downloaded: a host of its own, where there is a domain for such hosts."""
    domain = call.state.settings.objects_domain
    if not domain:
        return []
    port = urlsplit(call.base_url).port
    return [f"{bucket}.{domain}" + (f":{port}" if port else "")]


def _parameter(call: Call, name: str) -> str:
    value = call.fields().get(name, "")
    if not value:
        raise Refusal(errors.BAD_REQUEST, f"this needs the parameter {name}")
    return value


async def list_buckets(call: Call) -> Response:
    found = await buckets_of(call).list_buckets(call.identity.project)
    return json_response(objects.encode([bucket.name for bucket in found]))


async def list_infos(call: Call) -> Response:
    """`/v3/buckets` and `/v2/bucketInfos`: every bucket with what is known of it."""
    found, region = await buckets_of(call).list_buckets(call.identity.project), call.fields().get("region", "")
    shown = [objects.bucket_body(bucket, domains_of(call, bucket.name)) for bucket in found if region in ("", bucket.region)]
    return json_response(objects.encode(shown))


async def show_bucket(call: Call) -> Response:
    place = await buckets_of(call).find_bucket(_parameter(call, "bucket"), project=call.identity.project)
    return json_response(objects.encode(objects.bucket_body(place.bucket, domains_of(call, place.name))))


async def show_domains(call: Call) -> Response:
    place = await buckets_of(call).find_bucket(_parameter(call, "tbl"), project=call.identity.project)
    return json_response(objects.encode(domains_of(call, place.name)))


async def create_bucket(call: Call) -> Response:
    """`/mkbucketv3/<name>/region/<region>`, also without the region."""
    settings, name = call.state.settings, call.params["bucket"]
    region = call.params.get("region") or REGION
    if region != REGION:
        raise Refusal(errors.BAD_REQUEST, f"this server has the region {REGION} only, not {region[:40]!r}")
    await buckets_of(call).create_bucket(
        name, call.identity.project, private=settings.auth != "none", region=region, buckets_max=settings.buckets_max
    )
    return json_response(b"{}")


async def drop_bucket(call: Call) -> Response:
    await buckets_of(call).delete_bucket(call.params["bucket"], call.identity.project)
    return json_response(b"{}")


async def change_bucket(call: Call) -> Response:
    """`/private?bucket=&private=0`."""
    private = _parameter(call, "private")
    if private not in ("0", "1"):
        raise Refusal(errors.BAD_REQUEST, "private is 0 or 1")
    await buckets_of(call).change_bucket(_parameter(call, "bucket"), call.identity.project, private=private == "1")
    return json_response(b"{}")


def query_region(encode: Callable[[str, str], bytes]) -> Handler:
    """The handler of a region query.  Errors: Refusal 631."""

    async def handle(call: Call) -> Response:
        bucket, access = _parameter(call, "bucket"), call.fields().get("ak", "")
        try:
            if call.state.settings.auth == "none":
                identity = await open_owner(call, access)
            else:
                _, identity = await call.state.identities.read_access_key(access)
                call.state.rates.take(identity.project)
            place = await buckets_of(call).find_bucket(bucket, project=identity.project)
        except (NotFound, Unauthenticated):
            raise no_such_bucket() from None
        return json_response(encode(place.bucket.region, host_of(call)))

    return handle
