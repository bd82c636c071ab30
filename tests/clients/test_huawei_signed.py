"""Requests signed by the unmodified huaweicloudsdkcore: accepted as they are, refused once anything of them is changed.

The SDK's own client class asks a server on disk; what happens on the way is done by a handler of the SDK's, after it has signed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
import requests
from client_rig import Thread
from huaweicloudsdkcore.auth.credentials import BasicCredentials, GlobalCredentials
from huaweicloudsdkcore.client import Client as SdkClient
from huaweicloudsdkcore.exceptions.exceptions import ClientRequestException, SdkException
from huaweicloudsdkcore.http.http_handler import HttpHandler
from huaweicloudsdkcore.region.region import Region
from huaweicloudsdkecs.v2 import EcsClient
from huaweicloudsdkecs.v2 import ShowJobRequest as ShowEcsJob
from huaweicloudsdkevs.v2 import EvsClient, ShowJobRequest
from huaweicloudsdkiam.v3 import IamClient, KeystoneListEndpointsRequest, KeystoneListServicesRequest

from milepost import AsyncClient, Client, KeyPair, Unauthenticated
from milepost.settings import Settings
from milepost.store import AccessKey

ECHO = {"kind": "echo", "input": {"text": "héllo"}}
Change = Callable[[Any], None]


class Site(msgspec.Struct):
    """A server with auth, its folder, and the keys of a member and of a stranger."""

    thread: Thread
    system: Any
    url: str
    settings: Settings
    key: AccessKey
    other: AccessKey

    def credentials(self, **given: Any) -> BasicCredentials:
        return BasicCredentials(**{"ak": self.key.id, "sk": self.key.secret, "project_id": str(self.key.project), **given})

    def client(self, made: Any = EvsClient, *, change: Change | None = None, **given: Any) -> Any:
        builder = made.new_builder().with_credentials(self.credentials(**given)).with_endpoint(self.url)
        return builder.with_http_handler(_handler(change)).build() if change is not None else builder.build()

    def submit(self, client: SdkClient, **options: Any) -> Any:
        made = client.do_http_request("POST", "/jobs", body=ECHO, response_type="ShowJobResponse", **options)
        return msgspec.json.decode(made.raw_content)


def _handler(change: Change) -> HttpHandler:
    return HttpHandler().add_request_handler(lambda request, **_: change(request))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    settings = Settings(port=0, data=str(tmp_path / "data"), auth="required")
    thread = Thread(settings)
    thread.start()
    system, url = thread.wait_ready()
    key, other = thread.call(_people(system))
    site = Site(thread, system, url, settings, key, other)
    BasicCredentials._CACHE.clear()  # the SDK remembers projects by key and region for the whole process
    yield site
    site.thread.stop()


async def _people(system: Any) -> list[AccessKey]:
    keys = []
    for user, project in (("mia", "demo"), ("sam", "other")):
        await system.identities.create_project(project)
        await system.identities.create_user(user, "a long password")
        await system.identities.grant(user, project, "member")
        keys.append(await system.identities.create_access_key(user, project))
    return keys


def show(client: Any, job_id: str) -> Any:
    made = ShowEcsJob if isinstance(client, EcsClient) else ShowJobRequest
    return client.show_job(made(job_id=job_id))


def refused(call: Callable[[], Any], status: int, code: str, *words: str) -> bool:
    with pytest.raises(ClientRequestException) as caught:
        call()
    error = caught.value
    assert (error.status_code, error.error_code) == (status, code), error
    assert all(word in error.error_msg for word in words), error.error_msg
    assert error.request_id
    return True


# --- accepted ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("made", [EvsClient, EcsClient])
def test_a_signed_submit_and_its_query_are_accepted(site: Site, made: Any) -> None:
    client = site.client(made)
    job = site.submit(client)
    assert job["project"] == site.key.project
    assert show(client, job["id"].replace("-", "")).job_id == job["id"].replace("-", "")


def test_queries_with_repeated_and_unusual_values_are_accepted(site: Site) -> None:
    client = site.client()
    query = [("state", "ready"), ("state", "succeeded"), ("label", "a=b c"), ("label", "é~/+="), ("label", "A=%2F")]
    client.do_http_request("GET", "/jobs", query_params=query, response_type="ShowJobResponse")


def test_the_derived_variant_is_accepted(site: Site) -> None:
    credentials = site.credentials().with_derived_predicate(lambda _: True)
    region = Region("cn-north-9", site.url)
    sent: list[str] = []
    handler = _handler(lambda request: sent.append(request.header_params["Authorization"]))
    builder = EvsClient.new_builder().with_credentials(credentials).with_http_handler(handler)
    client = builder._with_derived_auth_service_name("evs").with_region(region).build()
    assert site.submit(client)["project"] == site.key.project
    assert sent[0].startswith(f"V11-HMAC-SHA256 Credential={site.key.id}/2")


def test_the_project_is_found_by_the_regions_name(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for credentials in (
        BasicCredentials(site.key.id, site.key.secret).with_iam_endpoint(site.url),
        BasicCredentials(site.key.id, site.key.secret),
    ):
        monkeypatch.setenv("HUAWEICLOUD_SDK_IAM_ENDPOINT", site.url)
        BasicCredentials._CACHE.clear()
        client = EvsClient.new_builder().with_credentials(credentials).with_region(Region("RegionOne", site.url)).build()
        assert client.get_credentials().project_id == site.key.project
        assert refused(lambda client=client: show(client, "0" * 32), 400, "Common.0011")


def test_a_region_that_is_not_here_has_no_project(site: Site) -> None:
    credentials = BasicCredentials(site.key.id, site.key.secret).with_iam_endpoint(site.url)
    with pytest.raises(SdkException, match="Failed to get project id"):
        EvsClient.new_builder().with_credentials(credentials).with_region(Region("mars-1", site.url)).build()


def test_a_global_client_finds_its_account_and_reads_services_and_endpoints(site: Site) -> None:
    credentials = GlobalCredentials(site.key.id, site.key.secret).with_iam_endpoint(site.url)
    client = IamClient.new_builder().with_credentials(credentials).with_region(Region("RegionOne", site.url)).build()
    assert client.get_credentials().domain_id == "default"
    services = {one.id: one.type for one in client.keystone_list_services(KeystoneListServicesRequest()).services}
    assert {"ecs", "ecsv1.1", "evs", "volume", "volumev2", "volumev3", "image", "identity", "iam"} <= set(services.values())
    endpoints = client.keystone_list_endpoints(KeystoneListEndpointsRequest(interface="public")).endpoints
    urls = {services[one.service_id]: one.url for one in endpoints}
    assert urls["ecs"] == f"{site.url}/v1/$(tenant_id)s"
    assert urls["volumev2"] == f"{site.url}/v2/$(tenant_id)s"
    assert urls["image"] == site.url


# --- refused ----------------------------------------------------------------------------------------------------------


def _header(name: str, value: str) -> Change:
    return lambda request: request.header_params.__setitem__(name, value)


def _body(request: Any) -> None:
    request.body = request.body.replace(b"echo", b"ech0")


def _query(request: Any) -> None:
    request.uri += "?x=1"


CHANGES = {
    "header": _header("User-Agent", "somebody else"),
    "content type": _header("Content-Type", "application/json;charset=utf8"),
    "date": _header("X-Sdk-Date", datetime.now(UTC).strftime("%Y%m%dT000000Z")),
    "host": _header("Host", "localhost"),
    "body": _body,
    "query": _query,
    "content hash": _header("X-Sdk-Content-Sha256", "0" * 64),
    "unsigned": _header("X-Sdk-Content-Sha256", "UNSIGNED-PAYLOAD"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_request_changed_after_it_was_signed_is_refused(site: Site, change: Change) -> None:
    client = site.client(change=change)
    with pytest.raises(ClientRequestException) as caught:
        site.submit(client)
    assert caught.value.status_code == 401
    assert site.thread.call(_count(site)) == 0


async def _count(site: Site) -> int:
    from milepost.store import JobQuery

    return len(await site.system.store.list_jobs(JobQuery()))


def test_the_gateways_error_says_what_is_wrong(site: Site) -> None:
    words = "Incorrect IAM authentication information"
    unknown = "0" * 32
    assert refused(lambda: show(site.client(sk="another"), unknown), 401, "APIGW.0301", words, "verify aksk signature fail")
    assert refused(lambda: show(site.client(ak="NOBODY"), unknown), 401, "APIGW.0301", words, "NOBODY is not known")
    old = (datetime.now(UTC) - timedelta(minutes=16)).strftime("%Y%m%dT%H%M%SZ")
    credentials = site.credentials()
    sign = credentials.sign_request
    credentials.sign_request = lambda request: (request.header_params.__setitem__("X-Sdk-Date", old), sign(request))[1]
    client = EvsClient.new_builder().with_credentials(credentials).with_endpoint(site.url).build()
    assert refused(lambda: show(client, unknown), 401, "APIGW.0301", words, "before this server's time", "900")


def test_a_disabled_user_and_a_revoked_key_are_refused_at_once(site: Site) -> None:
    client = site.client()
    job_id = site.submit(client)["id"].replace("-", "")
    assert show(client, job_id)
    site.thread.call(site.system.identities.set_user_enabled("mia", False))
    assert refused(lambda: show(client, job_id), 401, "APIGW.0301", "disabled")
    site.thread.call(site.system.identities.set_user_enabled("mia", True))
    assert show(client, job_id)
    site.thread.call(site.system.identities.delete_access_key(site.key.id))
    assert refused(lambda: show(client, job_id), 401, "APIGW.0301", "not known")


def test_another_project_in_path_or_header_is_refused(site: Site) -> None:
    client = site.client(project_id=str(site.other.project))
    assert refused(lambda: show(client, "0" * 32), 400, "Common.0018")
    stranger = site.client(ak=site.other.id, sk=site.other.secret, project_id=str(site.other.project))
    job_id = site.submit(site.client())["id"].replace("-", "")
    assert refused(lambda: show(stranger, job_id), 400, "Common.0011")


# --- sent again -------------------------------------------------------------------------------------------------------


def test_a_change_that_is_sent_again_is_refused_also_after_a_restart(site: Site) -> None:
    kept: list[tuple[str, str, dict[str, str], bytes]] = []
    client = site.client(
        change=lambda request: kept.append((request.method, request.url, dict(request.header_params), request.body))
    )
    job = site.submit(client)
    show(client, job["id"].replace("-", ""))
    (submit, query), url = kept, site.url

    def again(one: tuple[str, str, dict[str, str], bytes]) -> requests.Response:
        method, target, headers, body = one  # the host is signed: a restarted server has another port, and is told the old one
        return requests.request(method, target.replace(url, site.url), headers=headers, data=body, timeout=60)

    first = again(submit)
    assert (first.status_code, "X-Client-Token" in first.text) == (401, True)
    assert again(query).status_code == 200

    site.thread.stop()
    site.thread = Thread(site.settings)
    site.thread.start()
    site.system, site.url = site.thread.wait_ready()
    assert (again(submit).status_code, again(query).status_code) == (401, 200)
    assert site.thread.call(_count(site)) == 1


def test_equal_volumes_asked_for_one_after_the_other_are_all_made(site: Site) -> None:
    """The SDK's dates have whole seconds: some of these have one signature, and each is meant."""
    signatures: list[str] = []
    client = site.client(change=lambda request: signatures.append(request.header_params["Authorization"]))
    made = [site.submit(client)["id"] for _ in range(12)]
    assert len(set(made)) == 12
    assert len(set(signatures)) < 12, "no two of them were signed in one second: nothing was tried"
    assert site.thread.call(_count(site)) == 12


def test_a_submit_that_is_signed_again_is_done_once_with_the_same_client_token(site: Site) -> None:
    """What a caller does whose answer was lost: a new signature, the same token."""
    client = site.client()
    options = {"header_params": {"Idempotency-Key": "once"}}
    first = site.submit(client, **options)
    moment = datetime.now(UTC).second

    async def next_second() -> None:
        while datetime.now(UTC).second == moment:
            await asyncio.sleep(0.01)

    asyncio.run(next_second())
    assert site.submit(client, header_params={"Idempotency-Key": "once"})["id"] == first["id"]
    assert site.thread.call(_count(site)) == 1


# --- the other way round ----------------------------------------------------------------------------------------------


def test_the_client_signs_what_it_sends_and_its_repeats(site: Site) -> None:
    pair = KeyPair(access=site.key.id, secret=site.key.secret, project=str(site.key.project))
    with Client(site.url, credentials=pair) as native:
        jobs = [native.submit("echo", {"text": "same"}) for _ in range(3)]  # within one second, and equal but for their keys
        assert [job.wait(timeout_s=60).result for job in jobs] == [{"text": "same"}] * 3
    with Client(site.url, wire="huawei-evs", credentials=pair) as evs:
        assert evs.get(jobs[0].id).state == "succeeded"
    wrong = KeyPair(access=site.key.id, secret="another", project=str(site.key.project))
    with Client(site.url, wire="huawei-evs", credentials=wrong) as evs, pytest.raises(Unauthenticated) as caught:
        evs.get(jobs[0].id)
    assert "verify aksk signature fail" in str(caught.value)


async def test_the_async_client_signs_too(site: Site) -> None:
    pair = KeyPair(access=site.key.id, secret=site.key.secret, project=str(site.key.project))
    async with AsyncClient(site.url, credentials=pair) as native:
        job = await native.submit("echo", {"text": "é"})
        assert (await job.wait(timeout_s=60)).result == {"text": "é"}
        assert [one.id async for one in native.list(kind="echo")] == [job.id]
