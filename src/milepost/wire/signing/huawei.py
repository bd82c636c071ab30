"""Huawei Cloud's AK/SK signatures, made and checked: three variants over one canonical request.

| variant | `Authorization` | the key of the HMAC |
|---|---|---|
| current | `SDK-HMAC-SHA256 Access=AK, SignedHeaders=a;b, Signature=…` | the secret itself |
| scoped (older) | `SDK-HMAC-SHA256 Credential=AK/date/region/service/sdk_request, …` | a chain of HMACs over the scope |
| derived | `V11-HMAC-SHA256 Credential=AK/date/region/service, …` | HKDF of secret and access key over the scope |

In the scoped variant region and service may be empty.  The canonical request is method, path, query, headers, names of the
signed headers, and the hash of the body.

Theory: signers agree on what they sign, not on its order or spelling, so `verify` tries the few spellings that SDKs are known
to use.  Each of them names every part of the request, so whichever matches, nothing of the request can have been changed.

1. Path: decoded as a whole, so that `%2F` is a separator, encoded again by segments, with a slash at its end.
2. Query: all pairs, encoded; sorted by their text before encoding (huaweicloudsdkcore, golangsdk), or after it (the signing
   guide), or without regard to case (the older Go SDK), or as they came (huaweicloudsdkcore sorts repeated numbers as numbers).
   The older Go SDK signs only the first value of a repeated key; that is refused, because the others could be exchanged.
3. Body: its SHA-256; what `X-Sdk-Content-Sha256` says, if it is that, or `UNSIGNED-PAYLOAD` for what is neither JSON nor BSON.
   The older Go SDK puts the query in the place of the body when a POST has none.
4. Headers: lower-case name, trimmed value.  The older Go SDK makes one space of many.

Source: huaweicloud/huaweicloud-sdk-python-v3 huaweicloudsdkcore/signer/signer.py and hkdf.py; chnsz/golangsdk
auth/core/signer/signer.go and derived_signer.go; huaweicloud/huaweicloud-sdk-go auth/aksk/aksk_signer.go.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from urllib.parse import quote, quote_plus, unquote_to_bytes, urlsplit

import msgspec

from milepost.errors import Unauthenticated
from milepost.wire import Request

PLAIN, DERIVED = "SDK-HMAC-SHA256", "V11-HMAC-SHA256"
UNSIGNED = "UNSIGNED-PAYLOAD"
EMPTY_HASH = hashlib.sha256(b"").hexdigest()
TERMINATOR = "sdk_request"  # of the scoped variant
DATE_HEADER, CONTENT_HEADER = "X-Sdk-Date", "X-Sdk-Content-Sha256"
NONCE_HEADER = "X-Milepost-Nonce"  # ours: two equal changes within one second would have one signature
DATE, CONTENT = b"x-sdk-date", b"x-sdk-content-sha256"
HASHED_TYPES = (b"application/json", b"application/bson")  # whose bodies are always hashed
HEADERS_MAX = 100
PAIRS_MAX = 1000

_FIELDS = re.compile(r"(Access|Credential)=([^,\s]+),\s*SignedHeaders=([^,\s]+),\s*Signature=([0-9a-f]{64})").fullmatch
_DATE = re.compile(r"\d{8}T\d{6}Z", re.ASCII).fullmatch
_SPACES = re.compile(rb"\s+")


class Variant(StrEnum):
    CURRENT = "current"
    SCOPED = "scoped"
    DERIVED = "derived"


class Key(msgspec.Struct, frozen=True):
    """An access key with its secret.  Its repr shows no secret."""

    access: str
    secret: str

    def __repr__(self) -> str:
        return f"<Key {self.access}>"


class Scope(msgspec.Struct, frozen=True):
    """What a scoped or derived signature is for; `date` is `YYYYMMDD`."""

    date: str
    region: str = ""
    service: str = ""

    def __str__(self) -> str:
        return f"{self.date}/{self.region}/{self.service}"


class Claim(msgspec.Struct, frozen=True):
    """What an `Authorization` header says; nothing of it is believed before `verify`."""

    variant: Variant
    access: str
    names: tuple[str, ...]  # of the signed headers, in their order
    signature: str
    scope: Scope | None = None


class Message(msgspec.Struct, frozen=True):
    """A request as it is on the wire.  Header names are lower case; `path` and `query` are still encoded.

    `body` is None when it was not read: then it can only be one that the signature does not cover.
    """

    method: str
    path: bytes
    query: bytes = b""
    headers: Mapping[bytes, bytes] = {}
    body: bytes | None = b""


# --- reading -----------------------------------------------------------------------------------------------------------


def is_signed(authorization: bytes | None) -> bool:
    """Whether this `Authorization` header claims one of these signatures, or one of its family."""
    return authorization is not None and authorization.startswith((b"SDK-", b"V11-"))


def read_claim(authorization: str) -> Claim:
    """Errors: Unauthenticated with `reason` signature, saying what is wrong with the header."""
    algorithm, _, rest = authorization.partition(" ")
    if algorithm not in (PLAIN, DERIVED):
        raise refused(f"the algorithm {algorithm[:40]} is not supported; use {PLAIN} or {DERIVED}")
    found = _FIELDS(rest.strip())
    if found is None:
        raise refused(f"the Authorization header is not of the form `{PLAIN} Access=…, SignedHeaders=…, Signature=…`")
    field, who, listed, signature = found.groups()
    names = tuple(listed.split(";"))
    if len(names) > HEADERS_MAX or len(set(names)) != len(names) or "" in names:
        raise refused("SignedHeaders names a header twice, an empty one, or too many")
    if algorithm == PLAIN and field == "Access":
        return Claim(Variant.CURRENT, who, names, signature)
    parts = who.split("/")
    if algorithm == PLAIN and len(parts) == 5 and parts[4] == TERMINATOR:
        return Claim(Variant.SCOPED, parts[0], names, signature, Scope(*parts[1:4]))
    if algorithm == DERIVED and field == "Credential" and len(parts) == 4:
        return Claim(Variant.DERIVED, parts[0], names, signature, Scope(*parts[1:]))
    raise refused(f"the credential is not one of {algorithm}")


def read_date(text: str) -> int:
    """Unix µs of an `X-Sdk-Date`.  Errors: Unauthenticated."""
    if _DATE(text):
        try:
            return int(datetime.strptime(text, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()) * 1_000_000
        except ValueError:
            pass
    raise refused(f"{DATE_HEADER} is {text[:40]!r}; it is written 20260102T030405Z")


def date_text(at_us: int) -> str:
    """An instant as `X-Sdk-Date` has it."""
    return datetime.fromtimestamp(at_us // 1_000_000, UTC).strftime("%Y%m%dT%H%M%SZ")


def refused(why: str, *, hint: str | None = None) -> Unauthenticated:
    """The error of a signature that is not accepted."""
    return Unauthenticated(why, reason="signature", hint=hint)


# --- making ------------------------------------------------------------------------------------------------------------


def sign(
    request: Request, key: Key, *, at_us: int, variant: Variant = Variant.CURRENT, region: str = "", service: str = ""
) -> Request:
    """The request with `Host`, `X-Sdk-Date` and `Authorization`; every other header it has is signed too.

    An `Authorization` or date that it had is replaced, so a request may be signed again at each try.  A body that is neither JSON
    nor BSON is sent as `UNSIGNED-PAYLOAD`, unless its hash is given in `X-Sdk-Content-Sha256`, as the SDKs do it.
    """
    again = ("authorization", "x-sdk-date", "host")
    headers = {name: value for name, value in request.headers.items() if name.lower() not in again}
    parts = urlsplit(request.url)
    headers |= {"Host": parts.netloc.rpartition("@")[2], DATE_HEADER: date_text(at_us)}
    message = Message(request.method, parts.path.encode() or b"/", parts.query.encode(), _lower(headers), request.body or b"")
    if message.headers.get(b"content-type") and CONTENT not in message.headers and not _has_hashed_type(message):
        headers[CONTENT_HEADER] = UNSIGNED
        message = msgspec.structs.replace(message, headers=_lower(headers))
    names = tuple(sorted(name.lower() for name in headers if "_" not in name))
    scope = None if variant is Variant.CURRENT else Scope(headers[DATE_HEADER][:8], region, service)
    claim = Claim(variant, key.access, names, "", scope)
    canonical = canonical_request(message, claim, query=canonical_query(_pairs(message.query)), content=_content_to_sign(message))
    headers["Authorization"] = _authorization(claim, signature_of(claim, key.secret, headers[DATE_HEADER], canonical))
    return Request(request.method, request.url, headers, request.body)


def _lower(headers: Mapping[str, str]) -> dict[bytes, bytes]:
    return {name.lower().encode(): value.strip().encode() for name, value in headers.items()}


def _content_to_sign(message: Message) -> str:
    given = message.headers.get(CONTENT)
    if not message.body or given is None:
        return hashlib.sha256(message.body or b"").hexdigest()
    return given.decode()


def _authorization(claim: Claim, signature: str) -> str:
    names = ";".join(claim.names)
    if claim.variant is Variant.CURRENT:
        return f"{PLAIN} Access={claim.access}, SignedHeaders={names}, Signature={signature}"
    if claim.variant is Variant.SCOPED:
        return f"{PLAIN} Credential={claim.access}/{claim.scope}/{TERMINATOR}, SignedHeaders={names}, Signature={signature}"
    return f"{DERIVED} Credential={claim.access}/{claim.scope}, SignedHeaders={names}, Signature={signature}"


# --- checking ----------------------------------------------------------------------------------------------------------


def check_form(claim: Claim, message: Message, *, host_required: bool = False) -> int:
    """When it was signed, Unix µs, once everything that needs neither key nor body is right.

    Errors: Unauthenticated when the date is not signed, a signed header is missing, or the scope is of another day.
    """
    missing = [name for name in claim.names if name.lower().encode() not in message.headers]
    if missing:
        raise refused(f"SignedHeaders names headers that the request does not have: {', '.join(missing)[:200]}")
    for needed in (DATE.decode(), "host") if host_required else (DATE.decode(),):
        if needed not in claim.names:
            raise refused(f"the signature does not cover {needed}")
    date = message.headers[DATE].strip().decode("latin-1")
    signed_us = read_date(date)
    if claim.scope is not None and claim.scope.date != date[:8]:
        raise refused(f"the credential is of {claim.scope.date[:20]} and {DATE_HEADER} of {date[:8]}")
    return signed_us


def wants_body(message: Message) -> bool:
    """Whether the body has to be read to check the signature: not one that is there and not covered."""
    if message.headers.get(CONTENT, b"").strip() != UNSIGNED.encode() or _has_hashed_type(message):
        return True
    return message.headers.get(b"content-length", b"0") == b"0" and b"transfer-encoding" not in message.headers


def verify(claim: Claim, message: Message, secret: str) -> bool:
    """Whether the owner of the secret signed exactly this request; the time that it takes says nothing of the secret.

    Errors: Unauthenticated when the request contradicts itself: `X-Sdk-Content-Sha256` is not the body's.
    """
    date = message.headers[DATE].strip().decode("latin-1")
    right = False
    for query, content in _spellings(claim, message):
        canonical = canonical_request(message, claim, query=query, content=content)
        made = signature_of(claim, secret, date, canonical)
        right |= hmac.compare_digest(made.encode(), claim.signature.encode())
    return right


def _spellings(claim: Claim, message: Message) -> Iterator[tuple[str, str]]:
    """Query and body's hash in each way that an SDK may have signed them."""
    pairs = _pairs(message.query)
    contents = _contents(message)
    for query in _queries(pairs):
        for content in contents:
            yield query, content
    if claim.variant is Variant.SCOPED and message.method == "POST" and pairs and not message.body:
        yield "", hashlib.sha256(_go_encoded(pairs).encode()).hexdigest()


def _contents(message: Message) -> list[str]:
    """The hashes that the signature may be over."""
    given = message.headers.get(CONTENT, b"").strip().decode("latin-1")
    if given == UNSIGNED or message.body is None:
        if message.body == b"":  # huaweicloudsdkcore signs no body as such, whatever the header says
            return [UNSIGNED, EMPTY_HASH]
        if _has_hashed_type(message):
            raise refused("a JSON body must be signed; UNSIGNED-PAYLOAD is for other content types")
        return [UNSIGNED]
    own = hashlib.sha256(message.body).hexdigest()
    if given and not hmac.compare_digest(given.encode(), own.encode()):
        raise refused(f"{CONTENT_HEADER} is not the SHA-256 of the body")
    return [own]


def _has_hashed_type(message: Message) -> bool:
    return message.headers.get(b"content-type", b"").strip().startswith(HASHED_TYPES)


# --- the canonical request ---------------------------------------------------------------------------------------------


def canonical_request(message: Message, claim: Claim, *, query: str, content: str) -> str:
    """What is signed, as text; its bytes are those of its latin-1 form, because headers are bytes."""
    lines = "".join(f"{name}:{_value(message, claim.variant, name)}\n" for name in claim.names)
    return "\n".join((message.method.upper(), canonical_path(message.path), query, lines, ";".join(claim.names), content))


def _value(message: Message, variant: Variant, name: str) -> str:
    value = message.headers[name.lower().encode()].strip()
    return (_SPACES.sub(b" ", value) if variant is Variant.SCOPED else value).decode("latin-1")


def canonical_path(path: bytes) -> str:
    """Rule 1."""
    encoded = "/".join(quote(segment, safe="~") for segment in unquote_to_bytes(path).split(b"/"))
    return encoded if encoded.endswith("/") else encoded + "/"


Pair = tuple[bytes, bytes]


def canonical_query(pairs: list[Pair]) -> str:
    """Rule 2, as huaweicloudsdkcore and golangsdk have it."""
    return _join(sorted(pairs))


def _queries(pairs: list[Pair]) -> list[str]:
    """All of rule 2, without repetition."""
    first = canonical_query(pairs)
    if len(pairs) < 2:
        return [first]
    encoded = sorted(first.split("&"), key=lambda pair: tuple(pair.split("=")))
    folded = sorted(encoded, key=lambda pair: pair.partition("=")[0].lower())
    return list(dict.fromkeys((first, "&".join(encoded), "&".join(folded), _join(pairs))))


def _join(pairs: list[Pair]) -> str:
    return "&".join(f"{quote(name, safe='~')}={quote(value, safe='~')}" for name, value in pairs)


def _pairs(query: bytes) -> list[Pair]:
    """The decoded pairs in their order; `+` is a space, and a name without `=` has an empty value.  Errors: Unauthenticated."""
    parts = [part for part in query.split(b"&") if part]
    if len(parts) > PAIRS_MAX:
        raise refused(f"the query has {len(parts)} parameters; a signed one has at most {PAIRS_MAX}")
    split = (part.partition(b"=") for part in parts)
    return [(_unquote(name), _unquote(value)) for name, _, value in split]


def _unquote(text: bytes) -> bytes:
    return unquote_to_bytes(text.replace(b"+", b" "))


def _go_encoded(pairs: list[Pair]) -> str:
    """The query as Go's `url.Values.Encode` writes it: names sorted, the values of one in their order."""
    ordered = sorted(pairs, key=lambda pair: pair[0])
    return "&".join(f"{quote_plus(name, safe='~')}={quote_plus(value, safe='~')}" for name, value in ordered)


# --- the HMAC ----------------------------------------------------------------------------------------------------------


def signature_of(claim: Claim, secret: str, date: str, canonical: str) -> str:
    """The signature over a canonical request, lower-case hex."""
    algorithm = DERIVED if claim.variant is Variant.DERIVED else PLAIN
    lines = [algorithm, date, hashlib.sha256(canonical.encode("latin-1")).hexdigest()]
    if claim.variant is Variant.SCOPED:
        lines.insert(2, f"{claim.scope}/{TERMINATOR}")
    elif claim.variant is Variant.DERIVED:
        lines.insert(2, str(claim.scope))
    return hmac.new(signing_key(claim, secret), "\n".join(lines).encode("latin-1"), hashlib.sha256).hexdigest()


def signing_key(claim: Claim, secret: str) -> bytes:
    """The key of the HMAC in this variant."""
    if claim.scope is None:
        return secret.encode()
    if claim.variant is Variant.SCOPED:
        key = f"SDK{secret}".encode()
        for part in (claim.scope.date, claim.scope.region, claim.scope.service, TERMINATOR):
            key = _hmac(key, part.encode("latin-1"))
        return key
    pseudo = _hmac(claim.access.encode("latin-1"), secret.encode())  # HKDF (RFC 5869) of one block
    return _hmac(pseudo, str(claim.scope).encode("latin-1") + b"\x01").hex().encode()


def _hmac(key: bytes, data: bytes) -> bytes:
    return hmac.new(key, data, hashlib.sha256).digest()
