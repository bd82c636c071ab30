"""The kinds `pfop` and `fop`: several commands over one stored object, each a sub-job whose pipe is run step by step.

Rules
1. The whole text of an item is parsed before anything runs; an unknown or wrong command fails its item, with the step's number.
2. Only the last step's output is stored: bytes first, under a key that nobody else has, then the record under the job's fence.
   A worker that lost the job stores nothing; what a crash leaves is swept by its record (`store/loose.py`).
3. An output whose key is known and taken is not made again: the old object is the answer (`return_old` 1), unless `force`.  An
   object that an earlier attempt of this very job stored is its own (`return_old` 0).
4. Idle work gives way: it goes back to its queue while other media work of its project waits.
5. Cancelling kills what runs at once; the job's folder goes with the job.

Source: qiniu/api-specs media/{pfop,prefop}.yml; qiniu/developer.qiniu.com docs/v6/api/reference/fop/{pfop,persistent-fop}.md.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from milepost import Conflict, InvalidInput, NotFound, PermanentError, Running, Snooze, SubJob, kind
from milepost.bucket import Etag, StoredObject
from milepost.job import ProjectId
from milepost.store.buckets import Place, check_object_name
from milepost.work.locks import locked
from milepost.work.media import (  # noqa: F401  (they register commands)
    adapt,
    animate,
    archive,
    avconcat,
    avinfo,
    documents,
    files,
    frames,
    pictures,
    segment,
    transcode,
)
from milepost.work.media.commands import FopFailed, Made, Origin, Output, Target
from milepost.work.media.grammar import BadFop, Step, automatic_key, parse_fop
from milepost.work.media.grammar import Fop as Parsed
from milepost.work.media.tools import StepTools, bring
from milepost.work.threads import in_thread

FAILED = "fop_failed"
NO_SOURCE = "source data is empty or fail to get source data"
QUEUE, IDLE_QUEUE = "media", "media.idle"  # a pipeline is `media.<project>.<name>`
IDLE_PAUSE_S = 5.0
PIECE_BYTES = 4 << 20
SMALL_BYTES = 64 << 10  # hashed sooner than a thread has been woken
SHARED = "shared"  # the folder of what the steps of one item fetched


class Pfop(msgspec.Struct, kw_only=True):
    """Commands over one object; each is an item with a result of its own."""

    bucket: Annotated[str, Meta(min_length=1, max_length=255)]
    key: Annotated[str, Meta(max_length=750, description="of the source object")]
    fops: Annotated[list[str], Meta(max_length=100, description="commands, each with its pipe and saveas")] = []
    notify_url: Annotated[str, Meta(max_length=8192, description="told when all is done")] | None = None
    force: Annotated[bool, Meta(description="make outputs again that exist")] = False
    idle: Annotated[bool, Meta(description="run when nothing else waits")] = False
    pipeline: str = ""
    workflow_id: Annotated[str, Meta(description="stored commands that were asked for instead of fops")] | None = None
    task_from: str | None = None


class Fop(msgspec.Struct, kw_only=True):
    """One command with its pipe."""

    bucket: str
    key: str
    cmd: Annotated[str, Meta(description="steps between |, perhaps with saveas at the end")]
    force: bool = False
    idle: bool = False


class FopResult(msgspec.Struct, kw_only=True):
    """What one command came to: an object (key, hash), several (keys, perhaps with a result that tells of them), or an answer."""

    bucket: str
    key: str | None = None
    keys: list[str] | None = None
    hash: str | None = None
    result: Any = None
    return_old: int = 0


class PfopResult(msgspec.Struct):
    """Nothing: the items have the results."""


@kind("pfop", queue="media")
async def run_pfop(job: Running, spec: Pfop) -> PfopResult:
    """Run several media commands over one stored object; fails when one of them failed, after all have ended."""
    if not spec.fops:
        raise PermanentError("no_fops", f"there are no commands{f' in workflow {spec.workflow_id}' if spec.workflow_id else ''}")
    await job.run_sub_jobs(
        [
            SubJob(
                kind="fop",
                input=Fop(bucket=spec.bucket, key=spec.key, cmd=cmd, force=spec.force, idle=spec.idle),
                queue=job.job.queue,
            )
            for cmd in spec.fops
        ]
    )
    return PfopResult()


@kind("fop", queue="media", attempts=3)
async def run_fop(job: Running, spec: Fop) -> FopResult:
    """Run one media command with its pipe over a stored object, and store what it makes."""
    try:
        fop = parse_fop(spec.cmd)
    except BadFop as error:
        raise failure(str(error), error.index) from error
    if spec.idle and await _others_wait(job):
        raise Snooze(IDLE_PAUSE_S, "other media work waits")
    scratch = job.scratch
    async with locked(scratch / "lock"):
        folder = scratch / "work"
        try:
            return await Item(job, spec, fop, folder).run()
        except BaseException:  # it may be tried again, much later; what succeeded goes with the job's whole folder
            await in_thread(shutil.rmtree, folder, True)
            raise


def failure(message: str, index: int) -> PermanentError:
    """The item's failure: the text behind `execute fop cmd failed: `, and the number of its step."""
    return PermanentError(FAILED, message, {"error_index": index})


async def _others_wait(job: Running) -> bool:
    return await job.waiting_in(QUEUE, but=IDLE_QUEUE) > 0


def _fresh(folder: Path) -> None:
    """Each folder that is made is found, read and removed again when the job ends: the steps' own are made when needed."""
    try:
        folder.mkdir()
    except FileExistsError:  # an earlier attempt's
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()


class Item:
    """One attempt of one item."""

    def __init__(self, job: Running, spec: Fop, fop: Parsed, folder: Path) -> None:
        self.job, self.spec, self.fop, self.folder = job, spec, fop, folder
        self.last = len(fop.steps) - 1
        self.buckets = job.buckets

    async def run(self) -> FopResult:
        """Every step, and the output stored.  Errors: PermanentError `fop_failed`; RetryableError, Conflict."""
        source_place, source = await self.find_source()
        place = await self.find_target(source_place)
        target = self.target_of(place, source)
        old = await self.find_old(place, target)
        if old is not None:
            return old
        path = self.folder / "source"
        with self.failing(0):
            await bring(self.job, source, path, before=partial(_fresh, self.folder))
        output = await self.run_steps(source, path, target)
        if output.makes == "info" and self.fop.save is None:
            return FopResult(bucket=place.name, result=output.result)
        with self.failing(self.last):
            return await self.store(place, target, self.as_file(output, "answer"))

    @contextlib.contextmanager
    def failing(self, index: int) -> Any:
        """What a step cannot do fails the item, with the step's number."""
        try:
            yield
        except FopFailed as failed:
            raise failure(str(failed), index) from failed

    # --- where it comes from and goes to ---------------------------------------------------------------------------------

    async def find_source(self) -> tuple[Place, StoredObject]:
        try:
            place = await self.find_bucket(self.spec.bucket)
            return place, (await self.buckets.find(place, self.spec.key)).object
        except NotFound:
            raise failure(NO_SOURCE, 0) from None

    async def find_bucket(self, name: str) -> Place:
        return await self.buckets.find_bucket(name, project=ProjectId(self.job.project))

    async def find_target(self, source: Place) -> Place:
        if self.fop.save is None or self.fop.save.bucket == source.name:
            return source
        try:
            return await self.find_bucket(self.fop.save.bucket)
        except NotFound as error:
            raise failure(f"saveas: {error.message}", self.last) from None

    def target_of(self, place: Place, source: StoredObject) -> Target:
        step = self.fop.steps[-1]
        if self.fop.save is not None:
            return Target(bucket=place.name, key=self.fop.save.key)
        return Target(bucket=place.name, key=None if step.command.named_by_hash else automatic_key(self.fop.text, source.hash))

    async def find_old(self, place: Place, target: Target) -> FopResult | None:
        """Rule 3.  Only for outputs whose one key is known before they are made."""
        makes = self.fop.steps[-1].command.makes
        if target.key is None or makes == "objects" or (makes == "info" and self.fop.save is None):
            return None
        found = await self.buckets.look_up(place, target.key)
        if found is None:
            return None
        own = found.object.made_by == self.job.id
        if not own and self.spec.force:
            return None
        return FopResult(bucket=place.name, key=target.key, hash=found.object.hash, return_old=0 if own else 1)

    # --- the steps ---------------------------------------------------------------------------------------------------------

    async def run_steps(self, source: StoredObject, path: Path, target: Target) -> Output:
        origin = Origin(
            bucket=self.spec.bucket,
            key=self.spec.key,
            hash=source.hash,
            size_bytes=source.size_bytes,
            mime_type=source.mime_type,
        )
        shared = self.folder / SHARED
        mime_type, output = source.mime_type, Output.info(None)
        for index, step in enumerate(self.fop.steps):
            await self.progress(index, step.command.name)
            tools = StepTools(
                self.job,
                origin=origin,
                target=target,
                mime_type=mime_type,
                folder=self.folder / f"step-{index}",
                shared=shared,
                readers=f"{self.job.job.root_id} {source.object_key}" if index == 0 else None,
                report=lambda done, total, note, unit: self.job.progress(done, total, note, unit=unit),
            )
            with self.failing(index):
                output = await self.run_step(step, path, tools, index)
                if index < self.last:
                    made = self.as_file(output, f"answer-{index}").files[0]
                    path, mime_type = made.path, made.mime_type
        return output

    async def progress(self, done: int, note: str) -> None:
        """How many steps are done.  Nothing for a single one, which may say itself how far it is: each report is a commit."""
        if self.last and done:
            await self.job.progress(done, self.last + 1, note, unit="steps")

    async def run_step(self, step: Step, path: Path, tools: StepTools, index: int) -> Output:
        output = await step.command.run(step.spec, path, self.folder / f"out-{index}", tools)
        if output.makes != step.command.makes:
            raise RuntimeError(f"the command {step.command.name} made {output.makes}, and says {step.command.makes}")
        return output

    def as_file(self, output: Output, name: str) -> Output:
        """An answer that is stored or read by another step is a file of JSON."""
        if output.makes != "info":
            return output
        path = self.folder / name
        path.write_bytes(msgspec.json.encode(output.result))
        return Output.object(path, "application/json")

    # --- storing -------------------------------------------------------------------------------------------------------------

    async def store(self, place: Place, target: Target, output: Output) -> FopResult:
        """Every file of the output is an object; the one that names the item is written last."""
        if not output.files:
            raise FopFailed("the command made no file")
        first, *beside = output.files
        keys, stored = [], None
        for made in beside:
            await self.put(place, made, made.key)
        stored = await self.put(place, first, first.key if output.makes == "objects" else target.key)
        keys = [made.key or stored.key for made in output.files]
        await self.progress(len(self.fop.steps), "stored")
        if output.makes == "objects":
            hash = stored.hash if len(keys) == 1 else None
            return FopResult(bucket=place.name, keys=keys, hash=hash, result=output.result)
        return FopResult(bucket=place.name, key=stored.key, hash=stored.hash)

    async def put(self, place: Place, made: Made, key: str | None) -> StoredObject:
        """The file is an object, in place of what had its key.  Errors: Conflict when the lease was lost."""
        small = made.path.stat().st_size <= SMALL_BYTES
        found = _measure(made.path) if small else await in_thread(_measure, made.path)
        buckets, now_us = self.buckets, self.job.now_us()
        key = _checked(found.hash if key is None else key)
        object_key = await buckets.keep(made.path, place.project)
        new = StoredObject(
            key=key,
            hash=found.hash,
            size_bytes=found.size_bytes,
            mime_type=made.mime_type,
            put_us=now_us,
            md5=found.md5,
            object_key=object_key,
            made_by=self.job.id,
        )
        try:
            return await buckets.put(place, new, overwrite=True, claim=self.job.claim)
        except NotFound as error:  # the bucket was deleted meanwhile
            raise FopFailed(f"saveas: {error.message}") from error
        except Conflict:
            await buckets.drop(new.object_key)
            raise


def _checked(key: str) -> str:
    try:
        return check_object_name(key)
    except InvalidInput as error:
        raise FopFailed(error.message) from None


class _Measured(msgspec.Struct):
    hash: str
    md5: str
    size_bytes: int


def _measure(path: Path) -> _Measured:
    tag, md5, size_bytes = Etag(), hashlib.md5(usedforsecurity=False), 0
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            tag.update(piece)
            md5.update(piece)
            size_bytes += len(piece)
    return _Measured(tag.text(), md5.hexdigest(), size_bytes)


__all__ = ["FAILED", "Fop", "FopResult", "Pfop", "PfopResult", "failure", "run_fop", "run_pfop"]
