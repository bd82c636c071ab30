"""A job's address as plain JSON: what any process needs to wait for the job later.  Never a secret."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from milepost.errors import InvalidInput

VERSION = 1


class Handle(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=False, omit_defaults=True):
    """Where a job lives.  `cloud` names an entry of `clouds.yaml`, where the credentials are."""

    id: str
    wire: str
    endpoint: str | None = None
    project: str | None = None
    cloud: str | None = None
    kind: str | None = None
    milepost: int = msgspec.field(default=0)

    def to_json(self) -> dict[str, Any]:
        """`{"milepost": 1, "wire": "native", "endpoint": "http://…", "id": "…"}`; what is not known is left out."""
        return {"milepost": VERSION, **{name: value for name, value in msgspec.to_builtins(self).items() if name != "milepost"}}


def read_handle(value: Mapping[str, Any] | str | bytes | Handle) -> Handle:
    """A handle from its JSON, as text or as an object.

    Errors: InvalidInput when it is no handle, or one of a later version.
    """
    if isinstance(value, Handle):
        return value
    try:
        handle = (
            msgspec.json.decode(value, type=Handle) if isinstance(value, str | bytes) else msgspec.convert(dict(value), Handle)
        )
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(
            f"this is no job handle: {error}", hint="a handle is what job.handle or `milepost submit --json` gave"
        ) from error
    if handle.milepost > VERSION:
        raise InvalidInput(
            f"the handle has version {handle.milepost}; this milepost knows versions up to {VERSION}",
            hint="pip install -U milepost",
        )
    return handle
