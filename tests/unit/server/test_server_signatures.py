"""Signed requests at a server with auth: what is accepted, what is refused, and that nothing is done twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from server_house import Answer, Crowd, Exchange, House

from milepost.errors import Unauthenticated
from milepost.server.signatures import Recorder
from milepost.store import AccessKey
from milepost.wire import Request
from milepost.wire.signing import huawei
from milepost.wire.signing.huawei import Key, Variant

HOST = "127.0.0.1:8080"
ECHO = b'{"kind":"echo","input":{"text":"x"}}'


class Signer:
    """Signs with mia's key of `demo`, and asks."""

    def __init__(self, crowd: Crowd, key: AccessKey) -> None:
        self.crowd, self.house, self.web = crowd, crowd.house, crowd.house.web
        self.key = Key(key.id, key.secret)

    def sign(
        self,
        method: str,
        url: str,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
        *,
        late_s: float = 0,
        **options: Any,
    ) -> Request:
        headers = {**({"content-type": "application/json"} if body else {}), **(headers or {})}
        at_us = self.house.clock.now_us() - int(late_s * 1e6)
        return huawei.sign(Request(method, f"http://{HOST}{url}", headers, body), self.key, at_us=at_us, **options)

    async def send(self, request: Request, **changes: Any) -> Answer:
        changed = msgspec.structs.replace(request, **changes)
        body = changed.body or b""
        headers = {name.lower(): value for name, value in changed.headers.items()} | {"content-length": str(len(body))}
        return await self.web.ask(changed.method, changed.url.partition(HOST)[2], headers=headers, raw=body)

    async def ask(self, method: str, url: str, body: bytes = b"", **options: Any) -> Answer:
        return await self.send(self.sign(method, url, body, **options))


@pytest.fixture
async def signer(crowd: Crowd) -> AsyncIterator[Signer]:
    yield Signer(crowd, await crowd.house.identities.create_access_key("mia", "demo"))


def refused(answer: Answer, why: str) -> bool:
    assert (answer.status, why in answer.json["detail"]) == (401, True), answer.body
    return True


@pytest.mark.parametrize("variant", list(Variant))
async def test_a_signed_request_acts_as_its_keys_user_in_its_keys_project(signer: Signer, variant: Variant) -> None:
    made = await signer.ask("POST", "/jobs", ECHO, variant=variant, region="", service="")
    assert made.status == 202
    assert made.json["project"] == signer.crowd.demo
    assert made.json["input"] == {"text": "x"}
    assert (await signer.ask("GET", f"/jobs/{made.json['id']}", variant=variant)).status == 200
    assert (await signer.house.web_as(signer.crowd.stranger).get(f"/jobs/{made.json['id']}")).status == 404


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "PUT"},
        {"body": ECHO.replace(b"x", b"y")},
        {"body": ECHO + b" "},
        {"url": f"http://{HOST}/jobs?a=1"},
        {"url": f"http://{HOST}/jobs/batch"},
    ],
    ids=str,
)
async def test_a_request_that_was_changed_on_its_way_is_refused(signer: Signer, changes: dict[str, Any]) -> None:
    request = signer.sign("POST", "/jobs", ECHO)
    assert (await signer.send(request, **changes)).status in (401, 405)
    assert (await signer.house.web_as(signer.crowd.member).get("/jobs")).json["jobs"] == []


async def test_a_changed_header_and_a_wrong_secret_are_refused(signer: Signer) -> None:
    request = signer.sign("GET", "/jobs", headers={"x-language": "en-us"})
    assert (await signer.send(request)).status == 200
    assert refused(await signer.send(request, headers={**request.headers, "x-language": "zh-cn"}), huawei_words())
    signer.key = Key(signer.key.access, "another")
    assert refused(await signer.ask("GET", "/jobs"), huawei_words())
    signer.key = Key("NOBODY", "another")
    assert refused(await signer.ask("GET", "/jobs"), "NOBODY is not known")


def huawei_words() -> str:
    return "verify aksk signature fail"


@pytest.mark.parametrize(("late_s", "ok"), [(890, True), (-890, True), (905, False), (-905, False)])
async def test_the_date_must_be_within_the_window_to_either_side(signer: Signer, late_s: float, ok: bool) -> None:
    answer = await signer.ask("GET", "/jobs", late_s=late_s)
    assert answer.status == 200 if ok else refused(answer, "at most 900 s are allowed")


async def test_a_change_is_accepted_once_and_a_read_as_often_as_it_comes(signer: Signer) -> None:
    change, read = signer.sign("POST", "/jobs", ECHO), signer.sign("GET", "/jobs")
    answers = await asyncio.gather(*(signer.send(change) for _ in range(5)))
    assert sorted(one.status for one in answers) == [202, 401, 401, 401, 401]
    assert refused(next(one for one in answers if one.status == 401), "X-Client-Token")
    assert [(await signer.send(read)).status for _ in range(3)] == [200, 200, 200]
    assert (await signer.ask("POST", "/jobs", ECHO, late_s=1)).status == 202


def _over(connection: tuple[str, int], request: Request, *more: tuple[bytes, bytes]) -> dict[str, Any]:
    size = (b"content-length", b"%d" % len(request.body or b""))
    return _scope(request, [size, *more]) | {"client": connection}


async def test_equal_changes_of_one_second_over_one_connection_are_all_meant(signer: Signer) -> None:
    """Their signatures are equal.  Over another connection, or through a proxy, the same bytes are a replay."""
    app, change, other = signer.house.app, signer.sign("POST", "/jobs", ECHO), signer.sign("POST", "/jobs", ECHO + b" ")
    own, foreign = ("127.0.0.1", 40_001), ("127.0.0.1", 40_002)
    made = [await Exchange(app, _over(own, one), one.body or b"").end() for one in (change, other, change, change)]
    assert [one.status for one in made] == [202] * 4
    assert len({one.json["id"] for one in made}) == 4
    assert refused(await Exchange(app, _over(foreign, change), change.body or b"").end(), "X-Client-Token")
    forwarded = _over(own, change, (b"x-forwarded-for", b"192.0.2.1"))
    assert refused(await Exchange(app, forwarded, change.body or b"").end(), "X-Client-Token")
    signer.house.clock.advance(4)
    assert refused(await Exchange(app, _over(own, change), change.body or b"").end(), "X-Client-Token")


async def test_behind_a_public_url_connections_tell_nothing(signer: Signer) -> None:
    state, change = signer.house.app.state, signer.sign("POST", "/jobs", ECHO)
    state.settings = msgspec.structs.replace(state.settings, public_url=f"http://{HOST}")
    scopes = [_over(("127.0.0.1", 40_001), change) for _ in range(2)]
    assert [(await Exchange(signer.house.app, one, change.body or b"").end()).status for one in scopes] == [202, 401]


async def test_what_is_refused_for_its_rate_may_be_sent_again_as_it_is(signer: Signer) -> None:
    from milepost.server.limits import Rates

    state = signer.house.app.state
    change = signer.sign("POST", "/jobs", ECHO)
    state.rates = Rates(signer.house.clock, 1.0, 1)
    state.rates.take(signer.crowd.demo)
    assert (await signer.send(change)).status == 429
    signer.house.clock.advance(2)
    assert (await signer.send(change)).status == 202


async def test_a_setting_turns_the_memory_of_signatures_off(signer: Signer) -> None:
    state = signer.house.app.state
    state.settings = msgspec.structs.replace(state.settings, signature_once=False)
    change = signer.sign("POST", "/jobs", ECHO)
    assert [(await signer.send(change)).status for _ in range(2)] == [202, 202]


async def test_signatures_without_the_host_are_accepted_unless_a_setting_asks_for_it(signer: Signer) -> None:
    """golangsdk signs the headers that Go has in its map, and the host is not one of them."""
    request = signer.sign("GET", "/jobs")
    claim = huawei.read_claim(request.headers["Authorization"])
    message = huawei.Message("GET", b"/jobs", headers={b"x-sdk-date": request.headers["X-Sdk-Date"].encode()})
    claim = msgspec.structs.replace(claim, names=("x-sdk-date",))
    canonical = huawei.canonical_request(message, claim, query="", content=huawei.EMPTY_HASH)
    signature = huawei.signature_of(claim, signer.key.secret, request.headers["X-Sdk-Date"], canonical)
    words = f"SDK-HMAC-SHA256 Access={claim.access}, SignedHeaders=x-sdk-date, Signature={signature}"
    request = msgspec.structs.replace(request, headers={**request.headers, "Authorization": words})

    assert (await signer.send(request)).status == 200
    state = signer.house.app.state
    state.settings = msgspec.structs.replace(state.settings, signature_host_required=True)
    assert refused(await signer.send(request), "does not cover host")
    assert (await signer.ask("GET", "/jobs")).status == 200


async def test_the_public_host_is_as_good_as_the_one_a_proxy_put_there(signer: Signer) -> None:
    request = signer.sign("GET", "/jobs")
    assert refused(await signer.send(request, headers={**request.headers, "Host": "inside:1"}), huawei_words())
    state = signer.house.app.state
    state.settings = msgspec.structs.replace(state.settings, public_url=f"https://{HOST}")
    assert (await signer.send(request, headers={**request.headers, "Host": "inside:1"})).status == 200


async def test_a_signed_header_that_comes_twice_is_refused(signer: Signer) -> None:
    request = signer.sign("GET", "/jobs", headers={"x-language": "en-us"})
    scope = _scope(request, [(b"x-language", b"zh-cn")])
    answer = await Exchange(signer.house.app, scope, b"").end()
    assert refused(answer, "more than once")


def _scope(request: Request, more: list[tuple[bytes, bytes]]) -> dict[str, Any]:
    headers = [(name.lower().encode(), value.encode()) for name, value in request.headers.items()]
    return {
        "type": "http",
        "method": request.method,
        "scheme": "http",
        "path": request.url.partition(HOST)[2],
        "query_string": b"",
        "headers": [*more, *headers],
    }


# --- who may ----------------------------------------------------------------------------------------------------------


async def test_another_project_is_refused_in_the_header_even_for_an_admin(signer: Signer) -> None:
    admin = await signer.house.identities.create_access_key("ann", "demo")
    for key in (signer.key, Key(admin.id, admin.secret)):
        signer.key = key
        assert (await signer.ask("GET", "/jobs", headers={"x-project-id": signer.crowd.demo})).status == 200
        answer = await signer.ask("GET", "/jobs", headers={"x-project-id": signer.crowd.other})
        assert (answer.status, "is not the access key's" in answer.json["detail"]) == (403, True)


@pytest.mark.parametrize("what", ["key deleted", "user", "project", "role"])
async def test_whatever_is_disabled_or_taken_away_counts_at_once(signer: Signer, what: str) -> None:
    assert (await signer.ask("GET", "/jobs")).status == 200
    make = signer.house.identities
    if what == "key deleted":
        await make.delete_access_key(signer.key.access)
    elif what == "user":
        await make.set_user_enabled("mia", False)
    elif what == "project":
        await make.set_project_enabled("demo", False)
    else:
        await make.revoke_grant("mia", "demo", "member")
    assert refused(await signer.ask("GET", "/jobs"), signer.key.access)


async def test_a_disabled_key_is_refused(signer: Signer) -> None:
    key = await signer.house.store.get_access_key(signer.key.access)
    await signer.house.store.add_access_key(msgspec.structs.replace(key, id="OFF", enabled=False))
    with pytest.raises(Unauthenticated, match="disabled") as caught:
        await signer.house.identities.read_access_key("OFF")
    assert caught.value.fields["reason"] == "signature"


async def test_a_token_beside_a_signature_is_what_counts(signer: Signer) -> None:
    headers = {"x-auth-token": signer.crowd.member, "authorization": "SDK-HMAC-SHA256 nonsense"}
    assert (await signer.web.get("/jobs", headers)).status == 200
    assert (await signer.web.get("/jobs", {**headers, "x-auth-token": ""})).status == 401


async def test_errors_say_whose_fault_it_is(signer: Signer) -> None:
    from milepost.server.auth import identify

    async def reason(headers: dict[str, str], **more: Any) -> Any:
        scope = {**_scope(Request("GET", f"http://{HOST}/x", headers), []), "app": signer.house.app}
        with pytest.raises(Exception) as caught:
            await identify(scope, **more)
        return caught.value.fields["reason"]  # type: ignore[attr-defined]

    other = {"project": signer.crowd.other}
    assert await reason({}) == "token"
    assert await reason({"x-auth-token": "wrong"}) == "token"
    assert await reason({"x-auth-token": signer.crowd.member}, **other) == "project"
    assert await reason({"authorization": "SDK-HMAC-SHA256 x"}) == "signature"
    assert await reason(signer.sign("GET", "/x").headers, **other) == "project"


async def test_any_signature_is_taken_without_auth(house: House) -> None:
    request = huawei.sign(Request("POST", f"http://{HOST}/jobs", {}, ECHO), Key("any", "thing"), at_us=0)
    for _ in range(2):
        assert (await house.web.ask("POST", "/jobs", headers=request.headers, raw=ECHO)).status == 202


# --- bodies -----------------------------------------------------------------------------------------------------------


class Parts:
    """A body in parts, as an ASGI server gives them; counts what was taken."""

    def __init__(self, *parts: bytes) -> None:
        self.messages = [
            {"type": "http.request", "body": part, "more_body": index + 1 < len(parts)} for index, part in enumerate(parts)
        ]
        self.taken = 0

    async def __call__(self) -> dict[str, Any]:
        self.taken += 1
        return self.messages.pop(0)


async def test_a_body_is_whole_for_the_check_and_for_the_handler_in_any_order() -> None:
    for before in range(4):
        parts = Parts(b"a", b"b", b"c")
        recorder = Recorder(parts, limit_bytes=10, limit_s=1)
        seen = [(await recorder())["body"] for _ in range(before)]
        assert await recorder.whole() == await recorder.whole() == b"abc"
        seen += [(await recorder())["body"] for _ in range(3 - before)]
        assert seen == [b"a", b"b", b"c"]
        assert parts.taken == 3


async def test_a_signed_body_has_the_limit_of_every_body(signer: Signer) -> None:
    answer = await signer.ask("POST", "/jobs", b" " * (signer.house.settings.body_bytes_max + 1))
    assert (answer.status, answer.json["limit"]) == (413, "body_bytes_max")


async def test_a_body_in_parts_is_verified_as_one(signer: Signer) -> None:
    request = signer.sign("POST", "/jobs", ECHO)
    parts = [ECHO[:5], b"", ECHO[5:]]
    headers = {name.lower(): value for name, value in request.headers.items()} | {"transfer-encoding": "chunked"}
    exchange = signer.web.begin("POST", "/jobs", headers=headers, raw=parts)
    assert (await exchange.end()).status == 202


async def test_a_stream_goes_on_until_its_key_is_gone(signer: Signer) -> None:
    from milepost.server.auth import authenticate, identify

    request = signer.sign("GET", "/events")
    scope = {**_scope(request, []), "app": signer.house.app}
    first = await identify(scope)
    signer.house.clock.advance(3600)
    assert await authenticate(scope) == first
    await signer.house.identities.delete_access_key(signer.key.access)
    with pytest.raises(Unauthenticated):
        await authenticate(scope)
