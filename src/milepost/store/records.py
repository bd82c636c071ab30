"""What a store keeps beside jobs, as values: deliveries, resources, and who may ask for what."""

from __future__ import annotations

from typing import Literal, NamedTuple

import msgspec

from milepost.job import JobId, ProjectId

NEVER = 1 << 62


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """One event for one receiver, with its attempts.

    `event` is its type, or `missed` or `ping`, which are of no job.  `detail` is JSON: the event, or which events are missing;
    None for the callback of a job that is told of its end alone.
    """

    id: str
    job_id: JobId
    project: ProjectId
    url: str
    event: str
    state: Literal["pending", "delivered", "given_up"]
    attempt: int
    next_us: int
    created_us: int
    ended_us: int | None
    last_status: int | None
    last_error: str | None
    subscription_id: str | None = None  # None: of a job's own callback
    number: int | None = None  # among those of its subscription, from 1
    receiver: str = ""  # all with the same receiver share its places
    detail: bytes | None = None


class Resource(msgspec.Struct, frozen=True, kw_only=True):
    """A thing that jobs make and that outlives them: an image, a volume.  `doc` is JSON text; `version` grows with each write."""

    type: str
    id: str
    project: ProjectId
    doc: bytes
    created_us: int
    updated_us: int
    version: int


class Write(msgspec.Struct, frozen=True, kw_only=True):
    """One change of a resource: put it whole, or delete it.

    `if_version` is the version that must be stored: 0 for «must be new», None for any.
    """

    resource: Resource
    if_version: int | None = None
    delete: bool = False


class Project(msgspec.Struct, frozen=True):
    """Who jobs belong to; `callback_secret` signs its callbacks."""

    id: ProjectId
    name: str
    domain: str
    callback_secret: str  # whsec_…
    created_us: int
    enabled: bool = True


class User(msgspec.Struct, frozen=True):
    """Who may ask; what it may do in a project is in its grants."""

    id: str
    name: str
    domain: str
    password_hash: str
    created_us: int
    enabled: bool = True


class Grant(NamedTuple):
    """A user's role in a project."""

    project: ProjectId
    role: str


class Token(msgspec.Struct, frozen=True):
    """A bearer token; only its SHA-256 is stored."""

    digest: str
    user_id: str
    project: ProjectId | None
    roles: tuple[str, ...]
    methods: tuple[str, ...]
    audit_id: str
    issued_us: int
    expires_us: int
    revoked: bool = False
    name: str = ""


class AccessKey(msgspec.Struct, frozen=True):
    """An access key and its secret (needed whole to verify signatures)."""

    id: str
    secret: str
    user_id: str
    project: ProjectId
    created_us: int
    enabled: bool = True

    def __repr__(self) -> str:
        return f"<AccessKey {self.id} of {self.user_id} in {self.project}>"
