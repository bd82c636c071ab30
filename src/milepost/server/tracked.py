"""The routes of the tracker: jobs in other clouds that this server follows, and the credentials it does that with.

A tracked job is a Milepost job of the kind `track` and is everything that a job is; these routes show beside it where the foreign
job lives and how it was last seen.
"""

from __future__ import annotations

import hashlib
from typing import Any
from urllib.parse import urlsplit

import msgspec

from milepost.egress import EgressPolicy, check_url
from milepost.errors import Conflict, Forbidden, InvalidInput, NotFound
from milepost.job import FINAL, Job, JobId, ProjectId, Submission
from milepost.server import jobs
from milepost.server.http import JSON, Call, Reply, base_url, decode
from milepost.server.route import ALL_PROJECTS, LIMIT, Parameter, Route
from milepost.store import JobQuery
from milepost.store.credentials import (
    check_name,
    delete_credential,
    get_credential,
    list_credentials,
    put_credential,
    same_place,
)
from milepost.tracking import (
    KIND,
    LABEL_CREDENTIAL,
    LABEL_ID,
    LABEL_WIRE,
    TRACKED,
    Credential,
    Secret,
    Tracked,
    decode_tracked,
)
from milepost.vault import open_vault
from milepost.wire import rfc3339
from milepost.wire.native import from_job
from milepost.wire.tracking import (
    CredentialList,
    CredentialRequest,
    NativeCredential,
    NativeTracked,
    TrackedList,
    TrackRequest,
    decode_credential_request,
    decode_track_request,
    encode,
)

HANDLE = ("milepost", "wire", "endpoint", "project", "id", "kind")
AGAIN_MAX = 50  # times that the same job may be tracked anew after its tracking was ended


# --- tracked jobs --------------------------------------------------------------------------------------------------


async def track_job(call: Call) -> Reply:
    """The job is followed from now on; tracking it twice is tracking it once, unless the first one was ended or lost it."""
    jobs.check_json(call.headers.get(b"content-type", JSON))
    request = decode(decode_track_request, await call.body())
    call.query.done()
    submission = _submission(call, request)
    call.state.service.check(submission)
    await _check_place(call, request)
    job, created = await _submit(call, submission)
    shown = encode((await _shown(call, [job]))[0])
    reply = Reply(202 if created else 200, shown)
    reply.headers.append((b"location", f"{base_url(call.scope, call.state)}/tracked/{job.id}".encode("latin-1")))
    return reply


def _submission(call: Call, request: TrackRequest) -> Submission:
    submission = call.state.service.submission(KIND)
    identity = call.identity
    handle = {name: value for name, value in request.handle.items() if name in HANDLE}  # what else is in it is not kept
    submission.project = identity.project
    submission.origin = {"request_id": call.request_id, "user_id": identity.user_id}
    longest = call.state.settings.label_chars_max
    own = {LABEL_ID: handle.get("id"), LABEL_WIRE: handle.get("wire"), LABEL_CREDENTIAL: request.credential}
    named = {name: value for name, value in own.items() if isinstance(value, str) and 0 < len(value) <= longest}
    submission.labels = {**request.labels, **named}
    given: dict[str, Any] = {"handle": handle}
    if request.credential is not None:
        given["credential"] = request.credential
    submission.input = msgspec.json.encode(given)
    if request.callback is not None:
        jobs.check_callback(call, request.callback.url, "$.callback.url")
        submission.callback = request.callback
    return submission


async def _check_place(call: Call, request: TrackRequest) -> None:
    """What could never work is refused now.  Errors: InvalidInput."""
    endpoint = str(request.handle["endpoint"])
    _check_url(call, endpoint, "$.handle.endpoint")
    if request.credential is None:
        return
    try:
        credential = await get_credential(call.state.store, call.identity.project, request.credential)
    except NotFound as error:
        raise InvalidInput(error.message, path="$.credential", hint="milepost credential add") from None
    if not same_place(credential.endpoint, endpoint):
        raise InvalidInput(
            f"the credential {credential.name!r} is for {credential.endpoint}, and sent nowhere else", path="$.credential"
        )


def _check_url(call: Call, text: str, path: str) -> None:
    """`URL`, or as Qiniu's wire has it `URL,REGION=URL…`.  Errors: InvalidInput."""
    policy = EgressPolicy.from_settings(call.state.settings)
    first, *others = text.split(",")
    for url in (first, *(other.partition("=")[2] for other in others)):
        try:
            check_url(url, policy)
        except (InvalidInput, Forbidden) as error:
            raise InvalidInput(f"{path[2:]}: {error.message}", path=path, hint=error.hint) from None
        if "@" in urlsplit(url).netloc:
            raise InvalidInput(f"{path[2:]} has a user or password in it", path=path, hint="milepost credential add")


async def _submit(call: Call, submission: Submission) -> tuple[Job, bool]:
    handle = msgspec.json.decode(submission.input)["handle"]
    place = "\0".join(str(handle.get(name) or "") for name in ("wire", "endpoint", "project", "id"))
    digest = hashlib.sha256(place.encode()).hexdigest()
    for number in range(AGAIN_MAX):
        keyed = msgspec.structs.replace(submission, idempotency_key=f"track:{digest}:{number}", body_hash=digest)
        job, created = await call.state.service.submit(keyed)
        if created or not await _lost(call, job):
            return job, created
    raise Conflict(f"this job was tracked {AGAIN_MAX} times; wait until the first of these have expired")


async def _lost(call: Call, job: Job) -> bool:
    """Whether the tracking ended without the foreign job's end."""
    if job.state not in FINAL:
        return False
    record = await _record(call, job.id)
    return not record.final or record.vanished


async def list_tracked(call: Call) -> Reply:
    """A page of the project's tracked jobs, newest first; `id` finds a job by the id that its cloud gave it."""
    query, limit = call.query, jobs.page_limit(call)
    labels = jobs.labels_of(query.all("label"), most=call.state.settings.labels_max)
    for name, label in (("id", LABEL_ID), ("wire", LABEL_WIRE), ("credential", LABEL_CREDENTIAL)):
        if (value := query.one(name)) is not None:
            labels = (*labels, (label, value))
    asked = JobQuery(
        project=jobs.project_of(call),
        kinds=(KIND,),
        states=jobs.states_of(query.all("state")),
        labels=labels,
        after=await jobs.cursor_of(call, query.one("after")),
        limit=limit + 1,
        bodies=True,
    )
    query.done()
    found = await call.state.service.list(asked)
    page = found[:limit]
    headers = [jobs.next_link(call, after=page[-1].id)] if len(found) > limit else []
    return Reply(200, encode(TrackedList(await _shown(call, page))), headers)


async def show_tracked(call: Call) -> Reply:
    """A tracked job, and how it was last seen in its cloud."""
    job = await _get(call)
    return Reply(200, encode((await _shown(call, [job]))[0]))


async def untrack(call: Call) -> Reply:
    """The job is not followed any more; in its cloud it goes on.  One whose end was seen stays as it is, until it expires."""
    job = await _get(call)
    if job.state not in FINAL:
        try:
            job = await call.state.service.cancel(job.id, project=job.project, reason="the tracking was ended on request")
        except Conflict:  # it ended meanwhile
            job = await call.state.service.get(job.id, project=job.project)
    return Reply(200 if job.state in FINAL else 202, encode((await _shown(call, [job]))[0]))


async def _get(call: Call) -> Job:
    project = jobs.project_of(call)
    if call.scope["query_string"]:
        call.query.done()
    job = await call.state.service.get(JobId(call.param), project=project)
    if job.kind != KIND:
        raise NotFound(f"job {job.id} is no tracked job but a {job.kind!r}", job_id=job.id, hint=f"GET /jobs/{job.id}")
    return job


async def _shown(call: Call, found: list[Job]) -> list[NativeTracked]:
    parents = [job.id for job in found if job.sub_total]
    counts = await call.state.store.count_sub_jobs(parents) if parents else {}
    shown = []
    for job in found:
        record = await _record(call, job.id)
        given = msgspec.json.decode(job.input or b"{}")
        shown.append(
            NativeTracked(
                id=job.id,
                handle=given.get("handle", {}),
                credential=given.get("credential"),
                state=record.state,
                status=record.status,
                seen_at=rfc3339(record.seen_us),
                stale_since=rfc3339(record.stale_since_us),
                refused_since=rfc3339(record.refused_since_us),
                missing_since=rfc3339(record.missing_since_us),
                trouble=record.trouble,
                vanished=record.vanished,
                job=from_job(job, counts[job.id].by_state if job.id in counts else None),
            )
        )
    return shown


async def _record(call: Call, job_id: JobId) -> Tracked:
    try:
        return decode_tracked((await call.state.store.get_resource(TRACKED, job_id)).doc)
    except NotFound:
        return Tracked()


# --- credentials ---------------------------------------------------------------------------------------------------


async def put_credential_route(call: Call) -> Reply:
    """The credential has this name from now on, and is kept sealed; no answer shows it again."""
    jobs.check_json(call.headers.get(b"content-type", JSON))
    name = check_name(call.param)
    request = decode(decode_credential_request, await call.body())
    call.query.done()
    secret, who = _secret_of(request)
    _check_url(call, request.endpoint, "$.endpoint")
    if request.auth_url is not None:
        _check_url(call, request.auth_url, "$.auth_url")
    credential = await put_credential(
        call.state.store,
        open_vault(call.state.settings),
        call.identity.project,
        name,
        type=request.type,
        endpoint=request.endpoint.rstrip("/"),
        who=who,
        secret=secret,
        now_us=call.state.clock.now_us(),
    )
    return Reply(200, encode(_credential(credential)))


async def list_credentials_route(call: Call) -> Reply:
    """The project's credentials: what they are for, not what they are."""
    call.query.done()
    found = await list_credentials(call.state.store, ProjectId(call.identity.project))
    return Reply(200, encode(CredentialList([_credential(one) for one in found])))


async def delete_credential_route(call: Call) -> Reply:
    """The credential is gone; jobs that were tracked with it say so, and go on once there is one of that name again."""
    call.query.done()
    await delete_credential(call.state.store, call.identity.project, call.param)
    return Reply(204)


KEYSTONE = (
    "auth_url", "username", "user_id", "user_domain", "password", "application_credential_id", "application_credential_name",
    "application_credential_secret", "project_name", "project_id", "project_domain", "region", "interface",
)  # fmt: skip
KEYS = ("access", "secret", "security_token")


def _secret_of(request: CredentialRequest) -> tuple[Secret, str]:
    """What is sealed, and what may be shown.  Errors: InvalidInput naming what is missing or does not belong there."""
    fields = {"token": ("token",), "keystone": KEYSTONE, "keys": KEYS}
    given = {name: value for names in fields.values() for name in names if (value := getattr(request, name)) is not None}
    wrong = [name for name in given if name not in fields[request.type]]
    if wrong:
        raise InvalidInput(f"a credential of type {request.type} has no {', '.join(wrong)}", path=f"$.{wrong[0]}")
    if request.type == "token":
        _need(given, "token")
        return Secret(token=given["token"]), "token"
    if request.type == "keys":
        _need(given, "access")
        _need(given, "secret")
        return Secret(keys=given), given["access"]
    _need(given, "auth_url")
    if "application_credential_secret" not in given:
        _need(given, "password")
    names = ("username", "user_id", "application_credential_id", "application_credential_name")
    who = next((given[name] for name in names if name in given), None)
    if who is None:
        raise InvalidInput(f"a keystone credential needs one of {', '.join(names)}", path="$.username")
    return Secret(keystone=given), f"{who} at {given['auth_url']}"


def _need(given: dict[str, str], name: str) -> None:
    if name not in given:
        raise InvalidInput(f"{name} is missing", path=f"$.{name}")


def _credential(credential: Credential) -> NativeCredential:
    return NativeCredential(
        name=credential.name,
        type=credential.type,
        endpoint=credential.endpoint,
        who=credential.who,
        key=credential.sealed.split(".")[1],
        created_at=rfc3339(credential.created_us),  # type: ignore[arg-type]
        updated_at=rfc3339(credential.updated_us),  # type: ignore[arg-type]
    )


# --- the table -----------------------------------------------------------------------------------------------------

ROUTES: tuple[Route, ...] = (
    Route(
        "POST",
        "/tracked",
        track_job,
        "tracked",
        "Follow a job in another cloud",
        {
            202: (NativeTracked, "it is followed from now on; `Location` names it"),
            200: (NativeTracked, "it was followed already"),
        },
        body=TrackRequest,
        errors=(400, 413, 415),
    ),
    Route(
        "GET",
        "/tracked",
        list_tracked,
        "tracked",
        "List tracked jobs, newest first",
        {200: (TrackedList, "a page; `Link: rel=next` while there are more")},
        (
            Parameter("id", "by the id that its cloud gave it"),
            Parameter("wire", "of this wire"),
            Parameter("credential", "asked for with this credential"),
            Parameter("state", "the tracked job's state here; more than one with commas", many=True),
            Parameter("label", "with this label, as key:value; all of them must match", many=True),
            LIMIT,
            Parameter("after", "id of the last job of the page before; `Link` has the whole URL"),
            ALL_PROJECTS,
        ),
        errors=(400,),
    ),
    Route(
        "GET",
        "/tracked/{id}",
        show_tracked,
        "tracked",
        "Read a tracked job, and how it was last seen in its cloud",
        {200: (NativeTracked, "the tracked job")},
        (ALL_PROJECTS,),
        errors=(404, 410),
    ),
    Route(
        "DELETE",
        "/tracked/{id}",
        untrack,
        "tracked",
        "Follow a job no more; in its cloud it goes on",
        {
            200: (NativeTracked, "it is not followed any more"),
            202: (NativeTracked, "it was asked to end"),
        },
        (ALL_PROJECTS,),
        errors=(404, 410),
    ),
    Route(
        "PUT",
        "/credentials/{name}",
        put_credential_route,
        "tracked",
        "Keep a credential to follow jobs with",
        {200: (NativeCredential, "it is kept, without its secret")},
        body=CredentialRequest,
        errors=(400, 409, 413, 415),
    ),
    Route(
        "GET",
        "/credentials",
        list_credentials_route,
        "tracked",
        "List the project's credentials, without their secrets",
        {200: (CredentialList, "by name")},
    ),
    Route(
        "DELETE",
        "/credentials/{name}",
        delete_credential_route,
        "tracked",
        "Delete a credential",
        {204: (None, "it is gone")},
        errors=(404,),
    ),
)
