"""Requests that were signed for the proxy, signed again for the cloud behind it.

A signature that covers `Host` is good for one host: the SDK signed that of the proxy, the cloud wants its own.  Who has the
SDK's keys signs again.

Rules
1. Only what its caller signed rightly is signed again, with the same access key: the proxy lends its keys to nobody.
2. A signature that does not cover the host stays as it is, and so does one whose key is not here: then the host that was
   signed goes with it, and the cloud decides.
3. Everything that the caller sent is signed; the date is now's, and a change has a nonce, so that two equal ones differ.

Source: huaweicloud/huaweicloud-sdk-python-v3 huaweicloudsdkcore/signer; qiniu/python-sdk qiniu/auth.py (QiniuMacAuth).
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

import msgspec

from milepost.errors import Unauthenticated
from milepost.wire import Request
from milepost.wire.signing import huawei, qiniu
from milepost.wire.signing.huawei import Key, Message

READS = frozenset({"GET", "HEAD", "OPTIONS"})
WINDOW_S = 900.0  # of the caller's date, to either side of this machine's clock
WRONG = "the signature was not made for this request with the secret of "


class Given(msgspec.Struct, frozen=True):
    """A request as it came: header names in lower case, the path still encoded."""

    method: str
    path: bytes
    query: bytes
    headers: Mapping[str, str]
    body: bytes


class Resigner:
    """The keys that this proxy may sign with."""

    def __init__(self, keys: Iterable[Key] = ()) -> None:
        self._secrets = {key.access: key.secret for key in keys}

    def covers_host(self, headers: Mapping[str, str]) -> str | None:
        """The access key of a signature that covers `Host`; None for any other request."""
        given = headers.get("authorization", "").encode("latin-1")
        try:
            if huawei.is_signed(given):
                claim = huawei.read_claim(headers["authorization"])
                return claim.access if "host" in (name.lower() for name in claim.names) else None
            if given.startswith(b"Qiniu "):
                return qiniu.read_claim(headers["authorization"]).access
        except Unauthenticated:  # no form that is known here: the cloud says what it thinks of it
            return None
        return None

    def has(self, access: str | None) -> bool:
        return access in self._secrets

    def resign(self, given: Given, url: str, headers: dict[str, str], *, now_us: int) -> dict[str, str]:
        """The headers of the request to `url`, signed for it.  Errors: Unauthenticated when the caller's signature is wrong."""
        if given.headers["authorization"].startswith("Qiniu "):
            return self._qiniu(given, url, headers, now_us)
        return self._huawei(given, url, headers, now_us)

    def _huawei(self, given: Given, url: str, headers: dict[str, str], now_us: int) -> dict[str, str]:
        claim, message = huawei.read_claim(given.headers["authorization"]), _message(given)
        _check_date(huawei.check_form(claim, message), now_us)
        secret = self._secrets[claim.access]
        if not huawei.verify(claim, message, secret):
            raise huawei.refused(WRONG + claim.access)
        headers = {name: value for name, value in headers.items() if name != "content-length"}  # it is counted anew
        if given.method not in READS:
            headers[huawei.NONCE_HEADER] = secrets.token_hex(8)
        scope = claim.scope or huawei.Scope("")
        request = Request(given.method, url, headers, given.body)
        key = Key(claim.access, secret)
        signed = huawei.sign(request, key, at_us=now_us, variant=claim.variant, region=scope.region, service=scope.service)
        return signed.headers

    def _qiniu(self, given: Given, url: str, headers: dict[str, str], now_us: int) -> dict[str, str]:
        claim, message = qiniu.read_claim(given.headers["authorization"]), _message(given)
        signed_us = qiniu.read_date(message.headers)
        if signed_us is not None:
            _check_date(signed_us, now_us)
        secret = self._secrets[claim.access]
        if not qiniu.verify(claim, message, secret):
            raise qiniu.refused(WRONG + claim.access)
        request = Request(given.method, url, headers | {"host": urlsplit(url).netloc}, given.body)
        return qiniu.sign(request, Key(claim.access, secret), at_us=now_us).headers


def _message(given: Given) -> Message:
    headers = {name.encode(): value.encode("latin-1") for name, value in given.headers.items()}
    return Message(given.method, given.path, given.query, headers, given.body)


def _check_date(signed_us: int, now_us: int) -> None:
    away_s = abs(now_us - signed_us) / 1e6
    if away_s > WINDOW_S:
        raise huawei.refused(
            f"the request's date is {away_s:.0f} s away from this machine's time; at most {WINDOW_S:g} s are allowed"
        )


__all__ = ["Given", "Resigner"]
