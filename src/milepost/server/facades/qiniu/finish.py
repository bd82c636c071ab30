"""What every way of uploading ends with: the rules of the policy, the object's record, its processing, and the answer.

Rules
1. Everything that can be refused is refused before the bytes become an object.
2. The object is stored, then its processing is submitted, then the application is told; each step is on disk before the next.
3. A callback that fails is 579, and the object stays.  Its answer, which must be JSON, is the upload's answer.
Source: qiniu/developer.qiniu.com kodo put-policy, callback, magic variables.
"""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from pathlib import Path

import msgspec
from starlette.responses import Response

from milepost.bucket import StoredObject
from milepost.egress import EgressPolicy, Timeouts, check_url, open_guarded
from milepost.errors import CallerError, MilepostError
from milepost.server.facades.qiniu.endpoint import Call, identify_upload, json_response
from milepost.server.facades.qiniu.incoming import Received, buckets_of
from milepost.server.facades.qiniu.persist import submission_of_policy, submit
from milepost.store import Write
from milepost.store.buckets import Place, check_object_name
from milepost.wire import Request
from milepost.wire.qiniu import errors, objects, variables
from milepost.wire.qiniu.errors import Refusal
from milepost.wire.qiniu.ids import persistent_id
from milepost.wire.qiniu.policy import (
    Custom,
    Policy,
    callback_urls,
    check_client_key,
    check_deadline,
    check_key,
    check_size,
    choose_mime,
    read_policy,
    return_address,
)
from milepost.wire.signing import qiniu as signing

ANSWER_BYTES_MAX = 1 << 20
CALLBACK = Timeouts(connect_s=5.0, read_s=30.0, total_s=60.0)


class Upload(msgspec.Struct, kw_only=True):
    """One upload whose bytes have come."""

    policy: Policy
    place: Place
    file: Received
    key: str | None  # as the client asked for it
    fname: str = ""
    mime_type: str | None = None
    custom: Custom = Custom({}, {})
    hash: str | None = None  # where it is not that of the whole content
    also: list[Write] = []  # what changes in the same transaction


async def begin_upload(call: Call, token: str | None, *, bucket: str | None = None) -> tuple[Policy, Place]:
    """The policy of a token and its bucket, as far as they can be checked before anything was sent.

    Errors: Refusal, Unauthenticated, NotFound, Throttled.
    """
    policy = read_policy(await identify_upload(call, token), now_us=call.state.clock.now_us())
    if bucket is not None and bucket != policy.bucket:
        raise Refusal(errors.FORBIDDEN, "the bucket doesn't match with scope")
    place = await buckets_of(call).find_bucket(policy.bucket, project=call.identity.project)
    if policy.callback_url:
        for url in callback_urls(policy):
            check_url(url, EgressPolicy.from_settings(call.state.settings))
    return policy, place


async def finish_upload(call: Call, upload: Upload) -> Response:
    """Store it, start its processing, and answer.  Errors: Refusal, those of `Buckets.put` and of a submit."""
    policy, file = upload.policy, upload.file
    check_deadline(policy, now_us=call.state.clock.now_us())
    check_client_key(policy, upload.key)
    check_size(policy, file.size_bytes)
    mime_type = choose_mime(policy, given=upload.mime_type, fname=upload.fname, key=upload.key, head=file.head)
    values = await _values(call, upload, mime_type)
    key = _choose_key(call, upload, values)
    check_key(policy, check_object_name(key))
    values["key"] = key
    submission = await submission_of_policy(call, policy, key)
    if policy.return_body and not policy.callback_url:
        variables.fill_json(policy.return_body, values)
    stored = await _store(call, upload, key, mime_type)
    if submission is not None:
        job = await submit(call, submission)
        values["persistentId"] = persistent_id(job.id, upload.place.bucket.region)
    values["etag"] = stored.hash
    if policy.callback_url:
        return json_response(await _call_back(call, policy, values))
    if policy.return_body:
        body = variables.fill_json(policy.return_body, values)
    else:
        body = objects.stored_body(key, stored.hash, str(values["persistentId"]) if submission is not None else None)
    if policy.return_url:
        return Response(b"", 303, {"location": return_address(policy.return_url, body)})
    return json_response(body)


async def _store(call: Call, upload: Upload, key: str, mime_type: str) -> StoredObject:
    buckets, file, policy = buckets_of(call), upload.file, upload.policy
    object_key = await buckets.keep(file.path, upload.place.project)
    new = StoredObject(
        key=key,
        hash=upload.hash or file.hash,
        size_bytes=file.size_bytes,
        mime_type=mime_type,
        put_us=call.state.clock.now_us(),
        md5=file.md5,
        object_key=object_key,
        meta=upload.custom.metadata,
        storage_class=policy.file_type,
        end_user=policy.end_user,
    )
    try:
        return await buckets.put(upload.place, new, overwrite=policy.may_overwrite, also=upload.also)
    except CallerError:  # not after StoreUnavailable: it may have been written
        await buckets.drop(object_key)
        raise


def _choose_key(call: Call, upload: Upload, values: dict[str, variables.Value]) -> str:
    policy = upload.policy
    if upload.key is not None and not policy.force_save_key:
        return upload.key
    if policy.save_key:
        return variables.fill_text(policy.save_key, {**values, **variables.time_values(call.state.clock.now_us())})
    return upload.hash or upload.file.hash


async def _values(call: Call, upload: Upload, mime_type: str) -> dict[str, variables.Value]:
    policy, file = upload.policy, upload.file
    used = variables.names_in(policy.save_key, policy.return_body, policy.callback_body)
    values: dict[str, variables.Value] = {
        "bucket": upload.place.name,
        "key": upload.key,
        "etag": upload.hash or file.hash,
        "fname": upload.fname,
        "fsize": file.size_bytes,
        "mimeType": mime_type,
        "endUser": policy.end_user,
        "ext": variables.extension(upload.fname) or variables.extension(upload.key or ""),
        "uuid": str(uuid.uuid4()) if "uuid" in used else None,
        "reqid": call.reqid,
        **upload.custom.variables,
    }
    if "bodySha1" in used:
        values["bodySha1"] = await asyncio.to_thread(_sha1, file.path)
    if call.state.look is not None:
        values |= await call.state.look(file.path, used, call.state.settings)
    return values


def _sha1(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.sha1(usedforsecurity=False)).hexdigest()


# --- the application's callback ------------------------------------------------------------------------------------------


async def _call_back(call: Call, policy: Policy, values: dict[str, variables.Value]) -> bytes:
    """The application's answer.  Errors: Refusal 579."""
    is_json = policy.callback_body_type.partition(";")[0].strip().lower() == "application/json"
    template = policy.callback_body or ""
    body = variables.fill_json(template, values) if is_json else variables.fill_form(template, values)
    why = "there is no URL"
    for url in callback_urls(policy):
        try:
            return await _ask(call, policy, url, body)
        except (MilepostError, ValueError) as error:
            why = f"{error}"
    raise Refusal(errors.CALLBACK_FAILED, f"callback failed: {why[:300]}; the object is stored")


async def _ask(call: Call, policy: Policy, url: str, body: bytes) -> bytes:
    """Errors: MilepostError, ValueError when the answer is not 2xx with JSON."""
    headers = {"Content-Type": policy.callback_body_type}
    if policy.callback_host:
        headers["Host"] = policy.callback_host
    key = await _key_of(call)
    if key is not None:
        headers = signing.sign(Request("POST", url, headers, body), key, scheme=signing.Scheme.QBOX).headers
    egress = EgressPolicy.from_settings(call.state.settings)
    async with open_guarded("POST", url, policy=egress, headers=headers, body=body, timeouts=CALLBACK, redirects_max=0) as answer:
        said = await answer.read_at_most(ANSWER_BYTES_MAX)
    if not 200 <= answer.status < 300:
        raise ValueError(f"the application answered {answer.status_line}")
    msgspec.json.decode(said)
    return said


async def _key_of(call: Call) -> signing.Key | None:
    """The key that signed the upload, to sign the callback with; None where nobody knows its secret (auth none)."""
    if call.access is None:
        return None
    try:
        secret, _ = await call.state.identities.read_access_key(call.access)
    except MilepostError:
        return None
    return signing.Key(call.access, secret)


__all__ = ["Upload", "begin_upload", "finish_upload"]
