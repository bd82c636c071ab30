"""A key pair at a client: where it is found, that each try is signed anew, and that its secret is nowhere else."""

from __future__ import annotations

import logging
from typing import Any

import msgspec
import pytest

import milepost
from milepost.client.open import open_session
from milepost.client.signing import KeyPair, from_environment
from milepost.client.steps import Ask, Sleep
from milepost.errors import InvalidInput, MilepostError, Unreachable
from milepost.wire import Request, Response
from milepost.wire.signing import huawei
from milepost.wire.signing.huawei import Message, Variant

SECRET = "not-to-be-seen-anywhere"
PAIR = KeyPair(access="AKAKAKAKAKAKAKAKAKAK", secret=SECRET, project="0" * 32)
ENVIRON = {"HUAWEICLOUD_SDK_AK": "AK", "HUAWEICLOUD_SDK_SK": SECRET, "HUAWEICLOUD_SDK_PROJECT_ID": "1" * 32}


class Watch:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.wall_us = huawei.read_date("20260102T030405Z")
        self.passed_s = 0.0

    def now_us(self) -> int:
        return self.wall_us + int(self.passed_s * 1e6)

    def monotonic_s(self) -> float:
        return self.passed_s

    async def sleep(self, delay_s: float) -> None:
        raise AssertionError("nobody sleeps here")


def session(credentials: Any = PAIR, *, wire: str = "huawei-ecs", environ: dict[str, str] | None = None, **given: Any) -> Any:
    given = {"cloud": None, "token": None, "project": None, "clock": Watch(), **given}
    return open_session("http://ecs.test", wire=wire, credentials=credentials, environ=environ or {}, **given)


def holds(request: Request) -> bool:
    headers = {name.lower().encode(): value.encode() for name, value in request.headers.items()}
    path, _, query = request.url.removeprefix("http://ecs.test").partition("?")
    message = Message(request.method, path.encode(), query.encode(), headers, request.body or b"")
    claim = huawei.read_claim(request.headers["Authorization"])
    huawei.check_form(claim, message, host_required=True)
    return huawei.verify(claim, message, SECRET)


@pytest.mark.parametrize("wire", ["huawei-ecs", "huawei-evs", "native", "glance"])
def test_any_wires_request_is_signed_whole(wire: str) -> None:
    request = session(wire=wire).addressed(Request("POST", "/x?a=1", {"Content-Type": "application/json"}, b"{}"))
    assert holds(request)
    assert not holds(msgspec.structs.replace(request, body=b"[]"))
    assert request.headers["X-Project-Id"] == PAIR.project
    claim = huawei.read_claim(request.headers["Authorization"])
    assert {"host", "x-sdk-date", "content-type", "x-project-id", "x-milepost-nonce"} == set(claim.names)


@pytest.mark.parametrize("variant", list(Variant))
def test_every_variant_can_be_asked_for(variant: Variant) -> None:
    pair = msgspec.structs.replace(PAIR, variant=variant, region="cn-north-4", service="ecs", security_token="temporary")
    request = session(pair).addressed(Request("GET", "/x"))
    assert holds(request)
    assert huawei.read_claim(request.headers["Authorization"]).variant is variant
    assert request.headers["X-Security-Token"] == "temporary"


def test_each_try_is_signed_when_it_is_sent() -> None:
    """A repeat an hour later, and one within the same second: neither may look like the one before it."""
    opened = session()
    steps = opened.call(Request("POST", "/x", {}, b"{}"))
    first = next(steps)
    pause = steps.send(Unreachable("cut", sent=False))
    assert isinstance(pause, Sleep)
    same_second = steps.send(None)
    opened.clock.passed_s = 10.0
    steps.send(Response(503, {}, b""))
    later = steps.send(None)
    asks = [first, same_second, later]
    assert all(isinstance(ask, Ask) and holds(ask.request) for ask in asks)
    assert [ask.request.headers["X-Sdk-Date"] for ask in asks] == ["20260102T030405Z", "20260102T030405Z", "20260102T030415Z"]
    assert len({ask.request.headers["Authorization"] for ask in asks}) == 3


def test_a_read_has_no_nonce() -> None:
    assert "X-Milepost-Nonce" not in session().addressed(Request("GET", "/x")).headers


def test_the_key_pair_of_the_vendors_sdk_is_found_for_its_wires_only() -> None:
    request = session(None, environ={**ENVIRON, "MILEPOST_TOKEN": "t"}).addressed(Request("GET", "/x"))
    assert "Access=AK," in request.headers["Authorization"]
    assert request.headers["X-Project-Id"] == "1" * 32
    assert "X-Auth-Token" not in request.headers
    for given in ({"wire": "native"}, {"wire": "glance"}, {"wire": "huawei-ecs", "token": "t"}):
        request = session(None, environ=ENVIRON, **given).addressed(Request("GET", "/x"))
        assert "SDK-HMAC" not in request.headers.get("Authorization", "")


def test_half_a_pair_is_refused_by_the_name_of_the_other_half() -> None:
    assert from_environment({}) is None
    with pytest.raises(InvalidInput, match="HUAWEICLOUD_SDK_SK is not set"):
        from_environment({"HUAWEICLOUD_SDK_AK": "AK"})
    for wrong in ("", "a b", "a\nb", "é", "a,b"):
        with pytest.raises(InvalidInput) as caught:
            KeyPair(access="AK", secret=wrong)
        assert not wrong or wrong not in str(caught.value)


def test_a_pair_and_a_token_are_too_much() -> None:
    with pytest.raises(InvalidInput, match="give one"):
        session(token="t")


def test_a_secret_is_in_no_repr_log_line_or_error(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    opened = session()
    steps = opened.call(Request("GET", "/x"))
    ask = next(steps)
    with pytest.raises(MilepostError) as caught:
        steps.send(Response(401, {}, b'{"error_code":"APIGW.0301","error_msg":"no","request_id":"r"}'))
    seen = [repr(PAIR), repr(milepost.KeyPair(access="A", secret=SECRET)), repr(ask), repr(opened.__dict__), caplog.text]
    seen += [str(caught.value), repr(caught.value.fields), opened.command("wait", "1"), repr(opened.handle("1"))]
    assert SECRET not in "".join(seen)
