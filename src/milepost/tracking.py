"""What the tracker stores: a job in somebody else's cloud as it was last seen, and a credential.  Imports nothing of ours.

The kind `track` writes the first and reads the second, the routes below `/tracked` and `/credentials` the other way round.  Each
is the `doc` of a resource: a tracked job has its Milepost job's id, a credential `PROJECT/NAME`.
"""

from __future__ import annotations

from typing import Literal

import msgspec

TRACKED = "tracked"  # resource types in the store
CREDENTIAL = "credential"

KIND = "track"
SUB_KIND = "track.sub"
QUEUE = "track"
LABEL_ID, LABEL_WIRE, LABEL_CREDENTIAL = "tracked.id", "tracked.wire", "tracked.credential"

CredentialType = Literal["token", "keystone", "keys"]


class Tracked(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What is known of a foreign job.  `view` is the JSON of the last good answer as a `JobView`, without the raw answer.

    At most one of the `…_since_us` is set: unreachable, refused (credentials), missing (the cloud knows no such job).
    """

    view: str | None = None
    state: str | None = None  # in our words
    status: str | None = None  # in the cloud's
    seen_us: int | None = None  # of the answer that last changed anything here
    stale_since_us: int | None = None
    refused_since_us: int | None = None
    missing_since_us: int | None = None
    trouble: str | None = None  # what went wrong last, while one of those is set
    final: bool = False  # nothing more will be asked
    vanished: bool = False  # final because the cloud forgot the job


class Credential(msgspec.Struct, kw_only=True):
    """A credential at rest: everything secret is in `sealed`, which only the server's key opens.

    It is sent to the origin of `endpoint`, and to the identity service that it names, nowhere else: who may use a credential
    must not be able to have it sent to a host of their own.
    """

    name: str
    type: CredentialType
    endpoint: str
    who: str  # for people: a user's name, an access key's id; never a secret
    sealed: str
    created_us: int
    updated_us: int


class Secret(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What is sealed: the fields of one of `milepost.Credentials`, `milepost.KeyPair`, or a token.  Its repr shows none of it."""

    token: str | None = None
    keystone: dict[str, str] | None = None
    keys: dict[str, str] | None = None

    def __repr__(self) -> str:
        return "<Secret>"


def credential_id(project: str, name: str) -> str:
    """The id of the resource: a name is its project's own."""
    return f"{project}/{name}"


def about_credential(project: str, name: str) -> str:
    """What the sealed text is bound to: it cannot be moved to another project or name."""
    return f"milepost credential {credential_id(project, name)}"


encode_tracked = msgspec.json.Encoder().encode
decode_tracked = msgspec.json.Decoder(Tracked).decode
encode_credential = msgspec.json.Encoder().encode
decode_credential = msgspec.json.Decoder(Credential).decode
encode_secret = msgspec.json.Encoder().encode
decode_secret = msgspec.json.Decoder(Secret).decode
