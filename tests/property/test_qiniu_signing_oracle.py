"""Qiniu's own SDK as the oracle: what it signs is accepted here, and what is signed here it verifies."""

from __future__ import annotations

from urllib.parse import quote, urlsplit

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from milepost.wire import Request
from milepost.wire.signing import qiniu as own

qiniu = pytest.importorskip("qiniu")
from qiniu.auth import QiniuMacAuth, QiniuMacRequestsAuth, RequestsAuth  # noqa: E402

access = st.from_regex(r"[A-Za-z0-9_-]{1,40}", fullmatch=True)
secret = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1, max_size=40)
keys = st.builds(own.Key, access, secret)
texts = st.text(st.characters(codec="utf-8"), max_size=40)
pairs = st.dictionaries(st.from_regex(r"[a-z]{1,8}", fullmatch=True), texts, max_size=4)
paths = st.lists(texts, max_size=4).map(lambda parts: "/" + "/".join(quote(part, safe="") for part in parts))
hosts = st.sampled_from(["kodo.example.test", "127.0.0.1:9100", "localhost:80"])


def seen(prepared: requests.PreparedRequest) -> own.Message:
    """The prepared request as a server receives it."""
    parts = urlsplit(prepared.url or "")
    headers = {name.lower().encode(): str(value).encode() for name, value in prepared.headers.items()}
    body = prepared.body or b""
    return own.Message(
        prepared.method or "",
        parts.path.encode(),
        parts.query.encode(),
        {b"host": parts.netloc.encode(), **headers},
        body.encode() if isinstance(body, str) else body,
    )


@given(keys, hosts, paths, pairs, pairs, st.sampled_from(["GET", "POST", "PUT"]), st.booleans(), st.booleans())
def test_what_the_sdk_signs_is_accepted(
    key: own.Key, host: str, path: str, query: dict[str, str], form: dict[str, str], method: str, dated: bool, qbox: bool
) -> None:
    signer = (
        RequestsAuth(qiniu.Auth(key.access, key.secret))
        if qbox
        else QiniuMacRequestsAuth(QiniuMacAuth(key.access, key.secret, disable_qiniu_timestamp_signature=not dated))
    )
    data = form if method != "GET" and form else None
    prepared = requests.Request(method, f"http://{host}{path}", params=query, data=data, auth=signer).prepare()
    claim, message = own.read_claim(str(prepared.headers["Authorization"])), seen(prepared)
    assert claim.access == key.access
    assert own.verify(claim, message, key.secret)
    assert not own.verify(claim, message, key.secret + "x")
    assert (own.read_date(message.headers) is not None) == (dated and not qbox)


@given(
    keys, hosts, paths, st.sampled_from(["GET", "POST"]), st.sampled_from(list(own.Scheme)), st.binary(max_size=50).map(bytes.hex)
)
def test_the_sdk_verifies_what_is_signed_here(
    key: own.Key, host: str, path: str, method: str, scheme: own.Scheme, body: str
) -> None:
    url, content_type = f"http://{host}{path}", "application/x-www-form-urlencoded"
    signed = own.sign(Request(method, url, {"Content-Type": content_type}, body.encode()), key, scheme=scheme)
    accepted = qiniu.Auth(key.access, key.secret).verify_callback(
        signed.headers["Authorization"], url, body, content_type, method, {"Host": host}
    )
    assert accepted


policies = st.dictionaries(
    st.sampled_from(["insertOnly", "returnBody", "saveKey", "persistentOps", "endUser"]), texts, max_size=4
)


@given(keys, st.from_regex(r"[a-z0-9-]{3,20}", fullmatch=True), st.none() | texts, policies)
def test_upload_tokens_of_the_sdk(key: own.Key, bucket: str, name: str | None, policy: dict[str, str]) -> None:
    token = qiniu.Auth(key.access, key.secret).upload_token(bucket, name, policy=policy)
    read = own.read_upload_token(token)
    assert own.verify_upload_token(read, key.secret)
    assert not own.verify_upload_token(read, key.secret + "x")
    assert own.upload_token(key, read.policy) == token
    assert qiniu.Auth.up_token_decode(token)[2]["scope"] == (bucket if name is None else f"{bucket}:{name}")


@given(
    keys,
    st.text(st.characters(codec="utf-8", exclude_characters="?#%", exclude_categories=["Cc", "Zs", "Zl", "Zp"]), max_size=30),
    st.booleans(),
)
def test_private_urls_of_the_sdk(key: own.Key, name: str, escaped: bool) -> None:
    """Whether or not the caller escaped the key: what arrives is always escaped."""
    path = "/" + (quote(name) if escaped else name)
    url = qiniu.Auth(key.access, key.secret).private_download_url(f"http://dl.example.test{path}")
    token = own.read_download_token(url.partition("?")[2])
    assert token is not None
    assert own.verify_download(token, "http://dl.example.test", "/" + quote(name), key.secret)
    assert not own.verify_download(token, "http://dl.example.test", "/" + quote(name) + "x", key.secret)
    assert own.read_deadline(token.query) is not None
