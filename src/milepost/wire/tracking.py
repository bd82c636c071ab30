"""The native wire of the tracker: tracked jobs and credentials as JSON.

Source: this project's `docs/reference/http.md` and the OpenAPI document made from these structs.  No answer has a secret.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from milepost.job import Callback
from milepost.wire.native import NativeJob

Text = Annotated[str, Meta(min_length=1, max_length=4096)]


class TrackRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What `POST /tracked` takes: the handle of a job, and the credential to ask with."""

    handle: dict[str, Any]
    credential: str | None = None
    labels: dict[str, str] = {}
    callback: Callback | None = None


class NativeTracked(msgspec.Struct, kw_only=True):
    """A tracked job: where it lives, how it was last seen there, and the Milepost job that mirrors it."""

    id: str
    handle: dict[str, Any]
    credential: str | None = None
    state: str | None = None  # of the foreign job when it was last seen, in Milepost's words
    status: str | None = None  # in its cloud's own word
    seen_at: str | None = None  # when that was first seen
    stale_since: str | None = None  # no answer since
    refused_since: str | None = None  # the credential was refused, or cannot be opened
    missing_since: str | None = None  # the cloud says that there is no such job
    trouble: str | None = None
    vanished: bool = False
    job: NativeJob


class TrackedList(msgspec.Struct):
    """A page of tracked jobs; the next one is in the `Link` header."""

    tracked: list[NativeTracked]


class CredentialRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What `PUT /credentials/{name}` takes.  `endpoint` is the only place that it is sent to.

    `token`: `token`.  `keystone`: `auth_url`, and a user with a password, or an application credential.  `keys`: `access` and
    `secret`, an AK/SK pair of Huawei Cloud or of Qiniu.  Its repr shows none of it.
    """

    type: Literal["token", "keystone", "keys"]
    endpoint: Text
    token: Text | None = None
    auth_url: Text | None = None
    username: Text | None = None
    user_id: Text | None = None
    user_domain: Text | None = None
    password: Text | None = None
    application_credential_id: Text | None = None
    application_credential_name: Text | None = None
    application_credential_secret: Text | None = None
    project_name: Text | None = None
    project_id: Text | None = None
    project_domain: Text | None = None
    region: Text | None = None
    interface: Text | None = None
    access: Text | None = None
    secret: Text | None = None
    security_token: Text | None = None

    def __repr__(self) -> str:
        return f"<CredentialRequest {self.type} for {self.endpoint}>"


class NativeCredential(msgspec.Struct, kw_only=True):
    """A credential, without its secret.  `key` names the server's key that it is sealed with."""

    name: str
    type: str
    endpoint: str
    who: str
    key: str
    created_at: str
    updated_at: str


class CredentialList(msgspec.Struct):
    """The project's credentials, by name."""

    credentials: list[NativeCredential]


encode = msgspec.json.Encoder().encode
decode_track_request = msgspec.json.Decoder(TrackRequest).decode
decode_tracked = msgspec.json.Decoder(NativeTracked).decode
decode_tracked_list = msgspec.json.Decoder(TrackedList).decode
decode_credential_request = msgspec.json.Decoder(CredentialRequest).decode
decode_credential = msgspec.json.Decoder(NativeCredential).decode
decode_credentials = msgspec.json.Decoder(CredentialList).decode
