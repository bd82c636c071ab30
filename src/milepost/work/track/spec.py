"""What the kinds `track` and `track.sub` take."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from milepost import InvalidInput, State
from milepost.client.dialects import dialect
from milepost.client.handle import Handle, read_handle
from milepost.job import Failure


class TrackInput(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Which job to follow, and as whom."""

    handle: Annotated[
        dict[str, Any], Meta(description="the job's handle: wire, endpoint, id, and project where the wire needs it")
    ]
    credential: Annotated[str, Meta(max_length=64, description="name of a credential of this project")] | None = None

    def __post_init__(self) -> None:
        try:
            handle = read_handle(self.handle)
        except InvalidInput as error:
            raise ValueError(f"{error.message} - at `$.handle`") from None
        if handle.endpoint is None or not handle.endpoint.startswith(("http://", "https://")):
            raise ValueError("The handle needs an endpoint, a URL: this server knows no clouds.yaml - at `$.handle.endpoint`")
        try:
            dialect(handle.wire)
        except InvalidInput as error:
            raise ValueError(f"{error.message} - at `$.handle.wire`") from None

    @property
    def where(self) -> Handle:
        return read_handle(self.handle)


class SubInput(msgspec.Struct, kw_only=True):
    """A sub-job of a tracked job, as it ended."""

    id: str
    kind: str
    state: State
    status: str
    result: Any = None
    error: Failure | None = None
    sub_jobs: list[SubInput] = []
