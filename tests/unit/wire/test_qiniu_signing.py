"""Qiniu's signatures against the vectors of its documents and SDKs, and what must not be accepted."""

from __future__ import annotations

import pytest

from milepost.errors import Unauthenticated
from milepost.wire import Request
from milepost.wire.signing.qiniu import (
    Key,
    Message,
    Scheme,
    date_text,
    is_signed,
    read_claim,
    read_date,
    read_deadline,
    read_download_token,
    read_upload_token,
    sign,
    sign_text,
    sign_url,
    upload_token,
    verify,
    verify_download,
    verify_upload_token,
)

KEY = Key("ak", "sk")
FORM = "application/x-www-form-urlencoded"
BODY = b"bucket=media&key=in%2Fa.mp4&fops=avthumb%2Fmp4&force=1"
PFOP, STATUS = "http://api.example.test/pfop/", "http://api.example.test/status/get/prefop?id=z0.5f0000000000000000000001"
STAT = "http://kodo.example.test/stat/bWVkaWE6aW4vYS50eHQ="
AT = "20260102T030405Z"

VECTORS = [
    (Scheme.QBOX, "POST", PFOP, FORM, BODY, None, "i8aciTinWWtprGRd1IA4KDe2a8Q="),
    (Scheme.QBOX, "GET", STATUS, None, b"", None, "34nkRQr1gsLDXSJA3K3hNNr9VsU="),
    (Scheme.QINIU, "POST", PFOP, FORM, BODY, None, "ZVDfwGAkV75EBr7hUzBJugu8a6k="),
    (Scheme.QINIU, "POST", PFOP, FORM, BODY, AT, "4naBiOTmzpbkj-JYQV260Tpq3_c="),
    (Scheme.QINIU, "GET", STATUS, FORM, b"", AT, "bPFJeIaLIE9v3_Q_8eqgnXLp5iw="),
    (Scheme.QINIU, "POST", STAT, FORM, b"", None, "_A_7dXiHJfOhmNaF9Zzv9q5Cu-o="),
    (Scheme.QINIU, "POST", STAT, FORM, b"", "20260304T050607Z", "7bYpVCmAaAAycNxxQnZTcgIy720="),
    (Scheme.QINIU, "GET", STAT, None, b"", None, "gG5YE4kaHW_i9k_QDmqqqcRs474="),
    (Scheme.QBOX, "POST", STAT, FORM, b"", None, "HFCoaSV0u-8QBn4TVqclx_GPdZk="),
]


def message_of(request: Request) -> Message:
    """As the server sees it."""
    _, _, rest = request.url.partition("://")
    host, _, target = rest.partition("/")
    path, _, query = f"/{target}".partition("?")
    headers = {name.lower().encode(): value.encode() for name, value in request.headers.items()}
    return Message(request.method, path.encode(), query.encode(), {b"host": host.encode(), **headers}, request.body or b"")


def at_us(text: str | None) -> int | None:
    return None if text is None else read_date({b"x-qiniu-date": text.encode()})


@pytest.mark.parametrize(("scheme", "method", "url", "content_type", "body", "date", "signature"), VECTORS)
def test_the_vectors_are_made_and_accepted(
    scheme: Scheme, method: str, url: str, content_type: str | None, body: bytes, date: str | None, signature: str
) -> None:
    request = Request(method, url, {"Content-Type": content_type} if content_type else {}, body)
    signed = sign(request, KEY, scheme=scheme, at_us=at_us(date))
    assert signed.headers["Authorization"] == f"{scheme} ak:{signature}"
    claim = read_claim(signed.headers["Authorization"])
    assert (claim.scheme, claim.access, claim.signature) == (scheme, "ak", signature)
    assert verify(claim, message_of(signed), "sk")
    assert not verify(claim, message_of(signed), "sk2")


def test_the_published_check_of_qbox() -> None:
    key = Key("MY_ACCESS_KEY", "MY_SECRET_KEY")
    path = "/move/bmV3ZG9jczpmaW5kX21hbi50eHQ=/bmV3ZG9jczpmaW5kLm1hbi50eHQ="
    signed = sign(Request("POST", f"http://rs.example.test{path}"), key, scheme=Scheme.QBOX)
    assert signed.headers["Authorization"] == "QBox MY_ACCESS_KEY:FXsYh0wKHYPEsIAgdPD9OfjkeEM="


def test_the_vectors_of_the_go_sdk() -> None:
    assert sign_text(KEY, b"hello") == "ak:NDN8cM0rwosxhHJ6QAcI7ialr0g="
    assert upload_token(KEY, b"hello") == "ak:2pn0qs-2kfEsQFuHI2pAYlo0hpc=:aGVsbG8="


@pytest.mark.parametrize(
    ("policy", "token"),
    [
        (
            b'{"scope":"media:in/a.mp4","deadline":1893456000}',
            "ak:rc97aUqaSSMMXtAuQk_dswfP3TA=:eyJzY29wZSI6Im1lZGlhOmluL2EubXA0IiwiZGVhZGxpbmUiOjE4OTM0NTYwMDB9",
        ),
        (
            b'{"scope":"media:in/a.txt","deadline":1893456000}',
            "ak:ulyT3I16OF3Cv00E15VNN9ZvSXE=:eyJzY29wZSI6Im1lZGlhOmluL2EudHh0IiwiZGVhZGxpbmUiOjE4OTM0NTYwMDB9",
        ),
    ],
)
def test_upload_tokens(policy: bytes, token: str) -> None:
    assert upload_token(KEY, policy) == token
    read = read_upload_token(token)
    assert (read.access, read.policy) == ("ak", policy)
    assert verify_upload_token(read, "sk")
    assert not verify_upload_token(read, "other")


def test_another_policy_under_the_same_signature_is_refused() -> None:
    signature = upload_token(KEY, b'{"scope":"media:a","deadline":1}').rpartition(":")[0]
    forged = read_upload_token(f"{signature}:{upload_token(KEY, b'{}').rpartition(':')[2]}")
    assert not verify_upload_token(forged, "sk")


@pytest.mark.parametrize(
    "text", ["", "ak", "ak:sign", "ak:sign:", ":sign:e30=", "ak:sign:e30=:e30=", "ak:sign:€", "ak:s:a", "x" * 70_000]
)
def test_what_is_no_upload_token_is_refused(text: str) -> None:
    with pytest.raises(Unauthenticated):
        read_upload_token(text)


DOWNLOADS = [
    ("http://dl.example.test/in/a.mp4", "3RXpXDXHiN8mxKZziTFsJGuhshQ="),
    ("http://dl.example.test/in/a.jpg?imageView2/2/w/200", "-bWLPdXp92JlqHrALwswWi_r73I="),
    ("http://dl.example.test/a%20b%E4%B8%AD.txt", "LRM484T7dmDP56eGGUtzJn4S5Ds="),
]


@pytest.mark.parametrize(("url", "signature"), DOWNLOADS)
def test_downloads(url: str, signature: str) -> None:
    signed = sign_url(url, KEY, deadline_s=1893456000)
    assert signed.endswith(f"e=1893456000&token=ak:{signature}")
    path, _, query = signed.removeprefix("http://dl.example.test").partition("?")
    token = read_download_token(query)
    assert token is not None
    assert read_deadline(token.query) == 1893456000
    assert verify_download(token, "http://dl.example.test", path, "sk")
    assert not verify_download(token, "https://dl.example.test", path, "sk")
    assert not verify_download(token, "http://other.example.test", path, "sk")
    assert not verify_download(token, "http://dl.example.test", path + "x", "sk")


def test_a_download_that_was_signed_before_it_was_escaped_is_accepted() -> None:
    signed = sign_url("http://dl.example.test/a b中.txt", KEY, deadline_s=1893456000)
    token = read_download_token(signed.partition("?")[2])
    assert token is not None
    assert verify_download(token, "http://dl.example.test", "/a%20b%E4%B8%AD.txt", "sk")


def test_an_escaped_question_mark_does_not_become_a_query() -> None:
    signed = sign_url("http://dl.example.test/a?b", KEY, deadline_s=1893456000)
    token = read_download_token(signed.partition("?")[2])
    assert token is not None
    for path, query in (("/a%3Fb&e=1893456000", ""), ("/a%3Fb", "e=1893456000")):
        changed = type(token)(token.access, token.signature, query)
        assert not verify_download(changed, "http://dl.example.test", path, "sk")


def test_a_token_is_one_only_at_the_end_of_the_query() -> None:
    assert read_download_token("") is None
    assert read_download_token("e=1&token=ak:x&attname=b") is None
    assert read_download_token("mytoken=ak:x") is None
    with pytest.raises(Unauthenticated):
        read_download_token("e=1&token=x")


def test_a_changed_request_is_refused() -> None:
    signed = sign(Request("POST", PFOP, {"Content-Type": FORM}, BODY), KEY, at_us=0)
    claim, message = read_claim(signed.headers["Authorization"]), message_of(signed)
    changes = [
        Message("PUT", message.path, message.query, message.headers, message.body),
        Message("POST", b"/pfop", message.query, message.headers, message.body),
        Message("POST", message.path, b"a=1", message.headers, message.body),
        Message("POST", message.path, message.query, {**message.headers, b"host": b"other.example.test"}, message.body),
        Message("POST", message.path, message.query, {**message.headers, b"x-qiniu-date": b"20300101T000000Z"}, message.body),
        Message("POST", message.path, message.query, {**message.headers, b"x-qiniu-more": b"1"}, message.body),
        Message("POST", message.path, message.query, {**message.headers, b"content-type": b"text/plain"}, message.body),
        Message("POST", message.path, message.query, message.headers, BODY + b"&force=0"),
        Message("POST", message.path, message.query, message.headers, b""),
    ]
    assert verify(claim, message, "sk")
    assert [verify(claim, changed, "sk") for changed in changes] == [False] * len(changes)


def test_a_json_body_cannot_be_left_unsigned() -> None:
    headers = {"Content-Type": "application/json"}
    signed = sign(Request("POST", PFOP, headers), KEY)
    forged = message_of(Request("POST", PFOP, signed.headers, b'{"a":1}'))
    assert not verify(read_claim(signed.headers["Authorization"]), forged, "sk")


def test_a_signed_default_port_is_accepted_though_it_is_not_sent() -> None:
    signed = sign(Request("GET", "http://h.example.test:80/list?bucket=b"), KEY)
    message = message_of(Request("GET", "http://h.example.test/list?bucket=b", signed.headers))
    assert verify(read_claim(signed.headers["Authorization"]), message, "sk")


@pytest.mark.parametrize("header", ["Qiniu", "Qiniu ", "Qiniu ak", "Qiniu :x", "QBox ak:€", "Bearer a:b", "qiniu a:b"])
def test_what_is_no_signature_is_refused(header: str) -> None:
    with pytest.raises(Unauthenticated):
        read_claim(header)


def test_who_claims_a_signature() -> None:
    assert is_signed(b"Qiniu a:b")
    assert is_signed(b"QBox a:b")
    assert not is_signed(b"UpToken a:b:c")
    assert not is_signed(None)


def test_dates() -> None:
    assert date_text(1767323045_000_000) == AT
    assert at_us(AT) == 1767323045_000_000
    assert read_date({}) is None
    for wrong in (b"", b"2026", b"20261302T030405Z", b"\xff"):
        with pytest.raises(Unauthenticated):
            read_date({b"x-qiniu-date": wrong})
