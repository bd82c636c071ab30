"""From what a user gives to a session: endpoint or cloud, wire, token, environment."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from milepost.client.budget import Limit, read_limit
from milepost.client.cadence import Cadence
from milepost.client.dialects import Query, Spec, dialect
from milepost.client.durations import History, history_path
from milepost.client.handle import Handle, read_handle
from milepost.client.identity import Credentials, from_clouds_yaml, from_environment
from milepost.client.known import parse_instant
from milepost.client.session import Session, encode_input
from milepost.client.signing import KeyPair, QiniuKeys, Signer, qiniu_from_environment
from milepost.client.signing import from_environment as keys_from_environment
from milepost.clock import Clock, SystemClock
from milepost.errors import InvalidInput

DEFAULT_URL = "http://127.0.0.1:8080"
HUAWEI_PROJECT = "HUAWEICLOUD_SDK_PROJECT_ID"  # as huaweicloudsdkcore reads it


def open_session(
    endpoint: str | Mapping[str, str] | None,
    *,
    wire: str | None,
    cloud: str | None,
    token: str | None,
    project: str | None,
    credentials: Credentials | KeyPair | None,
    environ: Mapping[str, str] | None = None,
    clock: Clock | None = None,
    **options: Any,
) -> Session:
    """Where to go and as whom.

    Order: what is given; the cloud's entry in `clouds.yaml`; for wire glance without an endpoint `OS_*`; for a Huawei wire
    without a token `HUAWEICLOUD_SDK_AK` and `_SK`, for wire qiniu `QINIU_ACCESS_KEY` and `QINIU_SECRET_KEY`; `MILEPOST_URL`,
    `MILEPOST_TOKEN`, `MILEPOST_PROJECT`; this machine.
    Errors: InvalidInput naming what is missing or wrong.
    """
    environ = os.environ if environ is None else environ
    if isinstance(endpoint, Mapping):
        endpoint = _endpoint_of_regions(endpoint, wire)
    if endpoint is not None and cloud is not None:
        raise InvalidInput("an endpoint and a cloud were given; give one of them", path="$.cloud")
    signer: Signer | None
    signer, credentials = (credentials, None) if isinstance(credentials, KeyPair) else (None, credentials)
    if isinstance(signer, KeyPair) and wire == "qiniu":
        signer = QiniuKeys(access=signer.access, secret=signer.secret, project=signer.project)
    if signer is None and token is None and credentials is None and (wire or "").startswith("huawei-"):
        signer = keys_from_environment(environ)
    if signer is None and token is None and credentials is None and wire == "qiniu":
        signer = qiniu_from_environment(environ)
    if cloud is not None:
        wire = wire or "glance"
        credentials, endpoint = from_clouds_yaml(cloud, environ=environ)
    elif wire == "glance" and endpoint is None and credentials is None and not environ.get("MILEPOST_URL"):
        credentials = from_environment(environ)
        if credentials is None:
            raise InvalidInput("wire glance needs an endpoint, a cloud, or the OS_* environment", path="$.endpoint")
    if endpoint is None and credentials is None:
        endpoint = environ.get("MILEPOST_URL") or DEFAULT_URL
    if token is None and credentials is None and signer is None:
        token = environ.get("MILEPOST_TOKEN") or None
    if project is None and credentials is None and (signer is None or signer.project is None):
        project = environ.get("MILEPOST_PROJECT") or None
        if project is None and (wire or "").startswith("huawei-"):
            project = environ.get(HUAWEI_PROJECT) or None
    if options.get("limit") is None and environ.get("MILEPOST_LIMIT"):
        options["limit"] = _limit_of(environ["MILEPOST_LIMIT"])
    return Session(
        dialect(wire or "native"),
        endpoint,
        clock=clock or SystemClock(),
        token=token,
        project=project,
        credentials=credentials,
        signer=signer,
        cloud=cloud,
        history=History(history_path(environ)),
        **options,
    )


def _endpoint_of_regions(endpoints: Mapping[str, str], wire: str | None) -> str:
    """`{"z0": URL, "z1": URL}` as one text; the first is for all that has no region.  Errors: InvalidInput."""
    if wire != "qiniu" or not endpoints:
        raise InvalidInput("endpoints by region are wire qiniu's; give one URL", path="$.endpoint")
    first, *_ = endpoints.values()
    return ",".join([first, *(f"{region}={url}" for region, url in endpoints.items())])


def _limit_of(text: str) -> Limit:
    try:
        return read_limit(text)
    except ValueError as error:
        raise InvalidInput(str(error), path="MILEPOST_LIMIT") from error


def session_options(request_timeout_s: float, patience_s: float, cadence: Cadence | None, limit: Limit | None) -> dict[str, Any]:
    return {"request_timeout_s": request_timeout_s, "patience_s": patience_s, "cadence": cadence, "limit": limit}


def user_agent() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"milepost/{version('milepost')}"
    except PackageNotFoundError:
        return "milepost"


def read_ca(ca_file: str | None) -> bytes | None:
    """Errors: InvalidInput when it cannot be read."""
    if ca_file is None:
        return None
    try:
        return Path(ca_file).read_bytes()
    except OSError as error:
        raise InvalidInput(f"the certificate file cannot be read: {error}", path="$.ca_file") from error


def make_spec(
    kind: str,
    input: Any = None,
    *,
    queue: str | None = None,
    priority: int | None = None,
    labels: Mapping[str, str] | None = None,
    held: bool = False,
    run_at: datetime | str | None = None,
    attempts_max: int | None = None,
    timeout_s: float | None = None,
    deadline_s: float | None = None,
    callback_url: str | None = None,
    callback_on: Sequence[str] = (),
    idempotency_key: str | None = None,
) -> Spec:
    """One call makes one key, however often its request is then sent.  Errors: InvalidInput."""
    if labels is not None and not isinstance(labels, Mapping):
        raise InvalidInput(f"labels are a mapping of names to texts, not {labels!r}", path="$.labels")
    if callback_on and callback_url is None:
        raise InvalidInput("callback_on needs a callback_url", path="$.callback_on")
    return Spec(
        kind=kind,
        input=encode_input(input),
        idempotency_key=idempotency_key or str(uuid.uuid4()),
        queue=queue,
        priority=priority,
        labels=dict(labels or {}),
        held=held,
        run_at=parse_instant(run_at),
        attempts_max=attempts_max,
        timeout_s=timeout_s,
        deadline_s=deadline_s,
        callback_url=callback_url,
        callback_on=(callback_on,) if isinstance(callback_on, str) else tuple(callback_on),
    )


def make_specs(entries: Any) -> list[Spec]:
    """From `{"kind": …, "input": …, …}` each.  Errors: InvalidInput naming the entry."""
    specs = []
    for index, entry in enumerate(entries):
        try:
            specs.append(make_spec(**entry))
        except TypeError as error:
            raise InvalidInput(f"entry {index} is no submission: {error}", path=f"$[{index}]") from error
    return specs


def make_query(
    *,
    state: str | tuple[str, ...] | list[str] = (),
    kind: str | None = None,
    queue: str | None = None,
    labels: Mapping[str, str] | None = None,
    parent_id: str | None = None,
    page_size: int | None = None,
    oldest_first: bool = False,
    full: bool = False,
) -> Query:
    states = (state,) if isinstance(state, str) else tuple(state)
    return Query(
        states=states,
        kind=kind,
        queue=queue,
        labels=dict(labels or {}),
        parent_id=parent_id,
        page_size=page_size,
        oldest_first=oldest_first,
        full=full,
    )


def job_id_of(session: Session, value: Any) -> str:
    """The id within a job, a handle (as text, object or Handle), or an id itself.

    Errors: InvalidInput when the handle is of another server or cloud.
    """
    if isinstance(value, str) and not value.lstrip().startswith("{"):
        if not value or len(value) > 255 or any(char.isspace() for char in value):
            raise InvalidInput(f"{value[:80]!r} is no job id", path="$.id")
        return value
    handle = getattr(value, "handle", value)
    if not isinstance(handle, str | bytes | Mapping | Handle):
        raise InvalidInput(f"{value!r} is no job, no job id and no handle", path="$.id")
    check_handle(session, found := read_handle(handle))
    return found.id


def check_handle(session: Session, handle: Handle) -> None:
    """Errors: InvalidInput when this session does not lead to the handle's job."""
    same_place = handle.cloud is not None and handle.cloud == session.cloud
    same_place = same_place or handle.endpoint is None or session.endpoint is None
    same_place = same_place or session.dialect.endpoint(handle.endpoint or "") == session.endpoint
    if handle.wire != session.dialect.name or not same_place:
        raise InvalidInput(
            f"the handle is of {handle.wire} at {handle.cloud or handle.endpoint}, this client of {session.dialect.name} at "
            f"{session.cloud or session.endpoint}",
            path="$.handle",
            hint="use Client.from_handle(handle)",
        )


def handle_options(value: Any) -> tuple[Handle, dict[str, Any]]:
    """A handle, and what a client needs to reach its job."""
    handle = read_handle(value)
    if handle.cloud is not None:
        return handle, {"cloud": handle.cloud, "wire": handle.wire}
    return handle, {"endpoint": handle.endpoint, "wire": handle.wire, "project": handle.project}
