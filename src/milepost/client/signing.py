"""Who asks, where requests are signed: a key pair that signs each request when it is sent, repeats included.

`Session` takes anything with `sign`, so a cloud with other signatures needs a class here and nothing else.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from typing import Protocol

import msgspec

from milepost.errors import InvalidInput
from milepost.wire import Request
from milepost.wire.signing import huawei, qiniu

READS = ("GET", "HEAD", "OPTIONS")
NONCE = huawei.NONCE_HEADER  # without it the second of two equal changes within one second would be taken for a replay
AK, SK, TOKEN, PROJECT = (
    "HUAWEICLOUD_SDK_AK",
    "HUAWEICLOUD_SDK_SK",
    "HUAWEICLOUD_SDK_SECURITY_TOKEN",
    "HUAWEICLOUD_SDK_PROJECT_ID",
)
QINIU_ACCESS, QINIU_SECRET = "QINIU_ACCESS_KEY", "QINIU_SECRET_KEY"


class Signer(Protocol):
    """Signs requests for one caller.  `project` is what its key belongs to, where it is known."""

    @property
    def project(self) -> str | None: ...

    def sign(self, request: Request, *, at_us: int) -> Request:
        """The request with its signature of this moment; an older one is replaced."""
        ...


class KeyPair(msgspec.Struct, frozen=True, kw_only=True):
    """An access key and its secret (AK/SK), as Huawei Cloud and `milepost key create --pair` give them.

    `security_token` goes with a temporary pair.  `variant` is current, scoped (with `region` and `service`, which may be empty)
    or derived (with both).  Its repr shows no secret.
    """

    access: str
    secret: str
    project: str | None = None
    security_token: str | None = None
    variant: huawei.Variant = huawei.Variant.CURRENT
    region: str = ""
    service: str = ""

    def __post_init__(self) -> None:
        for name in ("access", "secret"):
            value = getattr(self, name)
            if not value or not value.isascii() or not value.isprintable() or " " in value or "," in value:
                raise InvalidInput(f"the key pair's {name} is empty or has characters that no key has", path=f"$.{name}")

    def __repr__(self) -> str:
        return f"<KeyPair {self.access}>"

    def sign(self, request: Request, *, at_us: int) -> Request:
        """The request as this pair's owner sends it at this moment."""
        headers = dict(request.headers)
        if self.security_token:
            headers["X-Security-Token"] = self.security_token
        if request.method not in READS:
            headers[NONCE] = secrets.token_hex(8)
        key = huawei.Key(self.access, self.secret)
        changed = Request(request.method, request.url, headers, request.body)
        return huawei.sign(changed, key, at_us=at_us, variant=self.variant, region=self.region, service=self.service)


class QiniuKeys(msgspec.Struct, frozen=True, kw_only=True):
    """An access key and its secret that sign as Qiniu has it.  Its repr shows no secret."""

    access: str
    secret: str
    project: str | None = None

    def __repr__(self) -> str:
        return f"<QiniuKeys {self.access}>"

    def sign(self, request: Request, *, at_us: int) -> Request:
        """The request in the scheme `Qiniu`, with this moment's date."""
        return qiniu.sign(request, huawei.Key(self.access, self.secret), at_us=at_us)


def qiniu_from_environment(environ: Mapping[str, str] | None = None) -> QiniuKeys | None:
    """The keys of `QINIU_ACCESS_KEY` and `QINIU_SECRET_KEY`; None when there are none.

    Errors: InvalidInput when only one half is there.
    Source: qiniu/python-sdk test_qiniu.py reads the same two.
    """
    environ = os.environ if environ is None else environ
    access, secret = environ.get(QINIU_ACCESS), environ.get(QINIU_SECRET)
    if not access and not secret:
        return None
    if not access or not secret:
        missing = QINIU_SECRET if access else QINIU_ACCESS
        raise InvalidInput(
            f"{missing} is not set, but its other half is", path="$.credentials", hint=f"set {QINIU_ACCESS} and {QINIU_SECRET}"
        )
    return QiniuKeys(access=access, secret=secret)


def from_environment(environ: Mapping[str, str] | None = None) -> KeyPair | None:
    """The key pair of `HUAWEICLOUD_SDK_AK` and its companions, as huaweicloudsdkcore reads them; None when there is none.

    Errors: InvalidInput when only one half is there.
    Source: huaweicloud/huaweicloud-sdk-python-v3 huaweicloudsdkcore/auth/provider.py.
    """
    environ = os.environ if environ is None else environ
    access, secret = environ.get(AK), environ.get(SK)
    if not access and not secret:
        return None
    if not access or not secret:
        missing = SK if access else AK
        raise InvalidInput(f"{missing} is not set, but its other half is", path="$.credentials", hint=f"set {AK} and {SK}")
    return KeyPair(access=access, secret=secret, project=environ.get(PROJECT) or None, security_token=environ.get(TOKEN) or None)
