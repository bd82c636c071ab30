"""Huawei's own SDK is the oracle: what it signs is accepted here, and what is signed here is what it would have signed."""

from __future__ import annotations

from types import SimpleNamespace
from urllib.parse import quote

import msgspec
from huaweicloudsdkcore.sdk_request import SdkRequest
from huaweicloudsdkcore.signer.signer import DerivationAKSKSigner, Signer
from hypothesis import given
from hypothesis import strategies as st

from milepost.wire import Request
from milepost.wire.signing import huawei
from milepost.wire.signing.huawei import Key, Message, Variant

AT_US = huawei.read_date("20260102T030405Z")
words = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"), max_size=12)
awkward = st.sampled_from(["", "a/b", "~", "%2F", "%", "a b", "a+b", "é", "日本", "A", "a", "a=b", "a&b", "..", "0", "10", "9"])
texts = words | awkward
secrets = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=40)
accesses = st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", min_size=1, max_size=20)
keys = st.builds(Key, accesses, secrets)
scopes = st.text("abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1, max_size=12)
names = st.sampled_from(["X-Client-Token", "X-Language", "User-Agent", "X-Project-Id", "Accept", "x-lower", "X_Underscore"])
values = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zs", "Zl", "Zp"]), max_size=12)
types = st.sampled_from(["application/json", "application/json;charset=utf8", "application/bson", "application/octet-stream", ""])
methods = st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD"])


class Asked(msgspec.Struct):
    method: str
    segments: list[str]
    query: list[tuple[str, str]]
    headers: dict[str, str]
    body: bytes

    @property
    def path(self) -> str:
        """As the SDK fills a template: each value quoted, `/` too."""
        return "/" + "/".join(quote(segment, safe="") for segment in self.segments)


@st.composite
def requests(draw: st.DrawFn) -> Asked:
    headers = draw(st.dictionaries(names, values, max_size=4))
    content_type = draw(types)
    if content_type:
        headers["Content-Type"] = content_type
    return Asked(
        draw(methods),
        draw(st.lists(texts, max_size=5)),
        draw(st.lists(st.tuples(texts, texts), max_size=6)),
        headers,
        draw(st.just(b"") | st.binary(max_size=40)),
    )


def by_sdk(asked: Asked, key: Key, scope: tuple[str, str] | None) -> SdkRequest:
    request = SdkRequest(
        method=asked.method,
        schema="https",
        host="evs.example.test:8443",
        resource_path=asked.path,
        query_params=list(asked.query),
        header_params={**asked.headers, "X-Sdk-Date": "20260102T030405Z"},
        body=asked.body,
    )
    credentials = SimpleNamespace(ak=key.access, sk=key.secret)
    if scope is None:
        return Signer(credentials).sign(request)
    region, service = scope
    return DerivationAKSKSigner(credentials).sign(request, service, region)


def on_the_wire(request: SdkRequest) -> Message:
    """What a server gets: the SDK has turned header values into latin-1 already."""
    path, _, query = request.uri.partition("?")
    headers = {name.lower().encode(): value.encode("latin-1") for name, value in request.header_params.items()}
    return Message(request.method, path.encode(), query.encode(), headers, request.body)


@given(requests(), keys, st.none() | st.tuples(scopes, scopes))
def test_what_the_sdk_signs_is_accepted(asked: Asked, key: Key, scope: tuple[str, str] | None) -> None:
    request = by_sdk(asked, key, scope)
    claim, message = huawei.read_claim(request.header_params["Authorization"]), on_the_wire(request)

    assert huawei.check_form(claim, message, host_required=True) == AT_US
    assert claim.access == key.access
    assert huawei.verify(claim, message, key.secret)
    assert not huawei.verify(claim, message, key.secret + "x")


@given(requests(), keys, st.none() | st.tuples(scopes, scopes))
def test_what_is_signed_here_is_what_the_sdk_would_have_signed(asked: Asked, key: Key, scope: tuple[str, str] | None) -> None:
    theirs = by_sdk(asked, key, scope)
    variant = Variant.CURRENT if scope is None else Variant.DERIVED
    region, service = scope or ("", "")
    url = f"https://evs.example.test:8443{theirs.uri}"
    ours = huawei.sign(
        Request(asked.method, url, asked.headers, asked.body), key, at_us=AT_US, variant=variant, region=region, service=service
    )

    assert ours.headers["Authorization"] == theirs.header_params["Authorization"]


@given(requests(), keys, st.sampled_from(["method", "path", "query", "body", "header"]), st.binary(min_size=1, max_size=6))
def test_what_the_sdk_signed_is_refused_once_it_was_changed(asked: Asked, key: Key, part: str, extra: bytes) -> None:
    request = by_sdk(asked, key, None)
    claim, message = huawei.read_claim(request.header_params["Authorization"]), on_the_wire(request)
    text = quote(extra).encode()
    if part == "method":
        changed = msgspec.structs.replace(message, method="PATCH" if asked.method != "PATCH" else "PUT")
    elif part == "path":
        changed = msgspec.structs.replace(message, path=message.path.rstrip(b"/") + b"/x" + text)
    elif part == "query":
        changed = msgspec.structs.replace(message, query=message.query + b"&x" + text + b"=1")
    elif part == "header":
        changed = msgspec.structs.replace(message, headers={**message.headers, b"host": b"x" + text})
    else:
        content_type = asked.headers.get("Content-Type", "application/json")
        if not content_type.startswith(("application/json", "application/bson")) and asked.body:
            return  # the SDK does not sign such a body
        changed = msgspec.structs.replace(message, body=message.body + extra)

    assert not _accepted(claim, changed, key.secret)


def _accepted(claim: huawei.Claim, message: Message, secret: str) -> bool:
    try:
        return huawei.verify(claim, message, secret)
    except huawei.Unauthenticated:
        return False


@given(requests(), keys, scopes | st.just(""), scopes | st.just(""))
def test_a_scoped_signature_is_accepted_and_no_other_scope_is(asked: Asked, key: Key, region: str, service: str) -> None:
    query = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in asked.query)
    url = f"https://h{asked.path}" + (f"?{query}" if query else "")
    made = huawei.sign(
        Request(asked.method, url, asked.headers, asked.body),
        key,
        at_us=AT_US,
        variant=Variant.SCOPED,
        region=region,
        service=service,
    )
    claim = huawei.read_claim(made.headers["Authorization"])
    headers = {name.lower().encode(): value.encode() for name, value in made.headers.items()}
    message = Message(asked.method, asked.path.encode(), query.encode(), headers, asked.body)

    assert huawei.verify(claim, message, key.secret)
    other = msgspec.structs.replace(claim, scope=huawei.Scope("20260102", region + "x", service))
    assert not huawei.verify(other, message, key.secret)
