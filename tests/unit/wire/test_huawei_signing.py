"""Huawei Cloud's signatures: published vectors, and what an accepted request may and may not look like."""

from __future__ import annotations

import hashlib
import hmac

import msgspec
import pytest

from milepost.errors import Unauthenticated
from milepost.wire import Request
from milepost.wire.signing import huawei
from milepost.wire.signing.huawei import Claim, Key, Message, Variant

KEY = Key("NOTESAK0000000000001", "notesSK-very-secret")
PROJECT = "0a1b2c3d4e5f60718293a4b5c6d7e8f9"
AT_US = huawei.read_date("20260102T030405Z")
HEADERS = {"content-type": "application/json", "x-project-id": PROJECT}
VECTORS = [
    (
        Request("GET", f"https://ecs.example.test/v1/{PROJECT}/jobs/ff8080828a1b2c3d018a1b2c3d4e0001", HEADERS),
        "420792cafe98aaa2049ea5f34f16ec6ebfbea467dc426e947168b9aabd0c51bb",
        "62f92a86a9a52ed0f587962b0f8b6a8a004c1076d55510cdf88aa9021cef4264",
    ),
    (
        Request("POST", f"https://ecs.example.test/v1/{PROJECT}/cloudservers/delete", HEADERS, b'{"servers":[{"id":"s-1"}]}'),
        "bf7065baf8b71c916868cb2292edea33ab1227569f79a310c8fde96369e90aa6",
        "c2504c5b8de7db021941f2021faf3f8b81157b6f89352567ba6cc17a97c192b9",
    ),
]


def received(request: Request) -> Message:
    """The request as a server has it."""
    path, _, query = request.url.partition("://")[2].partition("/")[2].partition("?")
    headers = {name.lower().encode(): value.encode() for name, value in request.headers.items()}
    return Message(request.method, b"/" + path.encode(), query.encode(), headers, request.body or b"")


def claim_of(request: Request) -> Claim:
    return huawei.read_claim(request.headers["Authorization"])


def holds(request: Request, secret: str = KEY.secret) -> bool:
    claim, message = claim_of(request), received(request)
    huawei.check_form(claim, message)
    return huawei.verify(claim, message, secret)


def signed(method: str = "POST", url: str = "https://evs.test/v2/p/cloudvolumes?a=1&b=2", **options: object) -> Request:
    body = options.pop("body", b'{"volume":{}}')
    headers = options.pop("headers", {"Content-Type": "application/json"})
    return huawei.sign(Request(method, url, headers, body), KEY, at_us=AT_US, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("request_", "canonical_hash", "signature"), VECTORS)
def test_published_vectors_are_reproduced_and_accepted(request_: Request, canonical_hash: str, signature: str) -> None:
    made = huawei.sign(request_, KEY, at_us=AT_US)
    claim, message = claim_of(made), received(made)
    content = hashlib.sha256(request_.body or b"").hexdigest()
    canonical = huawei.canonical_request(message, claim, query="", content=content)

    assert hashlib.sha256(canonical.encode()).hexdigest() == canonical_hash
    assert claim.signature == signature
    assert claim.names == ("content-type", "host", "x-project-id", "x-sdk-date")
    assert holds(made)


def test_the_hash_of_no_body_is_the_one_every_sdk_writes_down() -> None:
    assert huawei.EMPTY_HASH == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.mark.parametrize("variant", list(Variant))
@pytest.mark.parametrize(("region", "service"), [("cn-north-4", "ecs"), ("", "")])
def test_every_variant_is_accepted_with_its_own_secret_only(variant: Variant, region: str, service: str) -> None:
    made = signed(variant=variant, region=region, service=service)

    assert claim_of(made).variant is variant
    assert holds(made)
    assert not holds(made, "another secret")


def test_a_scope_may_be_empty_and_is_written_with_its_slashes() -> None:
    made = signed(variant=Variant.SCOPED)

    assert f"Credential={KEY.access}/20260102///sdk_request," in made.headers["Authorization"]


def test_a_scoped_key_is_the_chain_over_date_region_service_and_terminator() -> None:
    key = b"SDK" + KEY.secret.encode()
    for part in (b"20260102", b"cn-north-4", b"ecs", b"sdk_request"):
        key = hmac.new(key, part, hashlib.sha256).digest()
    claim = claim_of(signed(variant=Variant.SCOPED, region="cn-north-4", service="ecs"))

    assert huawei.signing_key(claim, KEY.secret) == key


@pytest.mark.parametrize("variant", list(Variant))
@pytest.mark.parametrize(
    "change",
    [
        {"method": "PUT"},
        {"path": b"/v2/q/cloudvolumes"},
        {"query": b"a=1&b=3"},
        {"query": b"a=1"},
        {"query": b"a=1&b=2&c=3"},
        {"query": b"a=1&b=2&b=2"},
        {"body": b'{"volume":{ }}'},
        {"body": b""},
    ],
    ids=str,
)
def test_no_part_of_a_signed_request_can_be_changed(variant: Variant, change: dict[str, object]) -> None:
    made = signed(variant=variant)
    message = msgspec.structs.replace(received(made), **change)

    assert not huawei.verify(claim_of(made), message, KEY.secret)


@pytest.mark.parametrize("name", [b"host", b"content-type", b"x-sdk-date"])
def test_no_signed_header_can_be_changed(name: bytes) -> None:
    made = signed()
    message = received(made)
    value = b"20260102T030406Z" if name == b"x-sdk-date" else b"other"
    message = msgspec.structs.replace(message, headers={**message.headers, name: value})

    assert not huawei.verify(claim_of(made), message, KEY.secret)


@pytest.mark.parametrize("query", [b"n=9&n=10", b"n=10&n=9", b"B=1&a=2", b"a=2&B=1", b"%7E=1&%C3%A9=2", b"%C3%A9=2&~=1"])
def test_the_order_of_the_query_on_its_way_does_not_matter(query: bytes) -> None:
    made = signed(url="https://evs.test/v2/p/volumes?" + query.decode(), body=None, method="GET")
    turned = b"&".join(reversed(query.split(b"&")))

    assert huawei.verify(claim_of(made), msgspec.structs.replace(received(made), query=turned), KEY.secret)


def test_the_older_go_sdk_hashes_the_query_of_a_post_without_a_body() -> None:
    """Its vector is made here as aksk_signer.go makes it: the query left out, and its encoding in the body's place."""
    message = Message("POST", b"/v1/p/do", b"b=x%20y&a=1", {b"host": b"h", b"x-sdk-date": b"20260102T030405Z"})
    claim = Claim(Variant.SCOPED, KEY.access, ("host", "x-sdk-date"), "", huawei.Scope("20260102"))
    canonical = "\n".join(
        ("POST", "/v1/p/do/", "", "host:h\nx-sdk-date:20260102T030405Z\n", "host;x-sdk-date", _sha256(b"a=1&b=x+y"))
    )
    lines = ("SDK-HMAC-SHA256", "20260102T030405Z", "20260102///sdk_request", _sha256(canonical.encode()))
    key = huawei.signing_key(claim, KEY.secret)
    signature = hmac.new(key, "\n".join(lines).encode(), hashlib.sha256).hexdigest()
    claim = msgspec.structs.replace(claim, signature=signature)

    assert huawei.verify(claim, message, KEY.secret)
    assert not huawei.verify(claim, msgspec.structs.replace(message, query=b"b=x%20y&a=2"), KEY.secret)
    assert not huawei.verify(claim, msgspec.structs.replace(message, body=b"{}"), KEY.secret)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# --- bodies ------------------------------------------------------------------------------------------------------------

FORM = {"Content-Type": "application/octet-stream"}


def test_a_body_that_is_no_json_is_sent_unsigned_and_need_not_be_read() -> None:
    made = signed(headers=FORM, body=b"\x00\x01")
    message = received(made)
    unread = msgspec.structs.replace(message, body=None, headers={**message.headers, b"content-length": b"2"})

    assert made.headers["X-Sdk-Content-Sha256"] == "UNSIGNED-PAYLOAD"
    assert not huawei.wants_body(unread)
    assert huawei.verify(claim_of(made), unread, KEY.secret)


def test_a_body_cannot_be_added_to_a_request_that_was_signed_without_one() -> None:
    """The SDK signs the hash of nothing beside UNSIGNED-PAYLOAD: nothing is what it must stay."""
    made = signed(headers=FORM, body=None)
    message = received(made)
    claim = claim_of(made)
    with_body = {**message.headers, b"content-length": b"3"}

    assert huawei.wants_body(message)
    assert huawei.verify(claim, message, KEY.secret)
    assert not huawei.verify(claim, msgspec.structs.replace(message, body=b"abc"), KEY.secret)
    assert not huawei.verify(claim, msgspec.structs.replace(message, body=None, headers=with_body), KEY.secret)


def test_json_is_never_accepted_unsigned() -> None:
    made = signed(headers={"Content-Type": "application/json", "X-Sdk-Content-Sha256": "UNSIGNED-PAYLOAD"})

    assert huawei.wants_body(received(made))
    with pytest.raises(Unauthenticated, match="must be signed"):
        holds(made)


def test_a_hash_that_is_given_must_be_the_bodys() -> None:
    right = {"Content-Type": "application/json", "X-Sdk-Content-Sha256": _sha256(b"abc")}

    assert holds(signed(headers=right, body=b"abc"))
    with pytest.raises(Unauthenticated, match="not the SHA-256"):
        holds(signed(headers=right, body=b"abd"))


# --- the header --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("authorization", "why"),
    [
        ("SDK-HMAC-SM3 Access=a, SignedHeaders=b, Signature=" + "0" * 64, "not supported"),
        ("SDK-HMAC-SHA256", "not of the form"),
        ("SDK-HMAC-SHA256 Access=a, SignedHeaders=b, Signature=" + "0" * 63, "not of the form"),
        ("SDK-HMAC-SHA256 Access=a, SignedHeaders=b, Signature=" + "A" * 64, "not of the form"),
        ("SDK-HMAC-SHA256 Access=a, SignedHeaders=b;b, Signature=" + "0" * 64, "twice"),
        ("SDK-HMAC-SHA256 Credential=a/b/c/d/e, SignedHeaders=b, Signature=" + "0" * 64, "credential"),
        ("V11-HMAC-SHA256 Access=a, SignedHeaders=b, Signature=" + "0" * 64, "credential"),
        ("V11-HMAC-SHA256 Credential=a/b/c/d/e, SignedHeaders=b, Signature=" + "0" * 64, "credential"),
    ],
)
def test_a_header_of_another_form_is_refused_with_its_reason(authorization: str, why: str) -> None:
    with pytest.raises(Unauthenticated, match=why) as caught:
        huawei.read_claim(authorization)
    assert caught.value.fields["reason"] == "signature"


def test_the_date_must_be_covered_and_the_host_where_it_is_asked_for() -> None:
    claim = Claim(Variant.CURRENT, "a", ("x-sdk-date",), "0" * 64)
    message = Message("GET", b"/", headers={b"x-sdk-date": b"20260102T030405Z", b"host": b"h"})

    assert huawei.check_form(claim, message) == AT_US
    with pytest.raises(Unauthenticated, match="cover host"):
        huawei.check_form(claim, message, host_required=True)
    with pytest.raises(Unauthenticated, match="cover x-sdk-date"):
        huawei.check_form(msgspec.structs.replace(claim, names=("host",)), message)
    with pytest.raises(Unauthenticated, match="does not have: x-other"):
        huawei.check_form(msgspec.structs.replace(claim, names=("host", "x-other", "x-sdk-date")), message)


def test_a_scope_of_another_day_is_refused() -> None:
    claim = Claim(Variant.SCOPED, "a", ("host", "x-sdk-date"), "0" * 64, huawei.Scope("20260103"))
    message = Message("GET", b"/", headers={b"x-sdk-date": b"20260102T030405Z", b"host": b"h"})

    with pytest.raises(Unauthenticated, match="20260103"):
        huawei.check_form(claim, message)


@pytest.mark.parametrize("date", ["", "2026-01-02T03:04:05Z", "20261302T030405Z", "٢٠٢٦٠١٠٢T030405Z"])
def test_a_date_of_another_form_is_refused(date: str) -> None:
    with pytest.raises(Unauthenticated, match="20260102T030405Z"):
        huawei.read_date(date)


def test_signing_again_replaces_the_old_signature() -> None:
    first = signed()
    again = huawei.sign(first, KEY, at_us=AT_US + 1_000_000)

    assert again.headers["X-Sdk-Date"] == "20260102T030406Z"
    assert sorted(again.headers) == sorted(first.headers)
    assert holds(again)


def test_no_repr_shows_a_secret() -> None:
    assert KEY.secret not in repr(KEY) + repr([KEY])
