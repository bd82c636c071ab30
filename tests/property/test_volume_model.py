"""Volumes against a small model: whatever is asked for in whatever order, records, files and quotas are what the model says."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from milepost.dispatch.embedded import EmbeddedDispatch
from milepost.engine.node import Node
from milepost.engine.service import Service
from milepost.errors import CallerError
from milepost.job import FINAL, JobId, State
from milepost.settings import Settings
from milepost.store.sqlite import SqliteStore
from milepost.testing import ManualClock
from milepost.volume import VOLUME, Volume, decode_volume
from milepost.wiring import encode_callback, load_kinds
from milepost.work.volumes.sweep import sweep

START_US = 1_790_000_000_000_000
COUNT_MAX, GIB_MAX = 6, 150
ORDER_S = 1000.0
GIB = 1 << 30


class Rig:
    """An engine without its loops on a store in memory or in a file; the clock stands still."""

    def __init__(self, folder: Path, *, in_file: bool) -> None:
        self.folder, self.clock = folder, ManualClock(START_US)
        self.settings = Settings(data=str(folder), volumes_max=COUNT_MAX, volumes_gib_max=GIB_MAX)
        self.store = SqliteStore(folder / "milepost.db" if in_file else ":memory:")
        self.dispatch = EmbeddedDispatch(self.clock)
        self.service, self.node = self.process(), None  # type: ignore[var-annotated]

    def process(self) -> Service:
        """One more way in to the same store, as another process would have it."""
        return Service(self.store, self.dispatch, load_kinds(), self.clock, self.settings)

    async def open(self) -> None:
        await self.store.open()
        self.node = Node(
            self.store,
            self.dispatch,
            self.service,
            self.clock,
            self.settings,
            scratch=self.folder / "scratch",
            objects=None,
            send=lambda *_, **__: None,  # type: ignore[arg-type, return-value]
            encode_callback=encode_callback,
            secret_of=lambda _: None,  # type: ignore[arg-type, return-value]
        )

    async def submit(self, kind: str, spec: Any, *, service: Service | None = None, held: bool = False) -> JobId:
        service = service or self.service
        expires_us = self.clock.now_us() + int(ORDER_S * 1e6) if held else None
        wanted = service.submission(kind, input=msgspec.json.encode(spec), held=held, expires_us=expires_us)
        return (await service.submit(wanted)).job.id

    async def work(self) -> None:
        """Everything that is ready runs to its end."""
        while True:
            await self.node.heartbeat.run_once()
            claimed = await self.node.claimer.run_once()
            tasks = [one.task for one in self.node.executor.attempts.values() if one.task is not None]
            if tasks:
                await asyncio.wait(tasks)
            elif not claimed:
                return

    async def volumes(self) -> dict[str, Volume]:
        return {one.id: decode_volume(one.doc) for one in await self.store.list_resources(VOLUME)}


class Kept(msgspec.Struct):
    """What one volume should be."""

    size: int
    type: str
    made: bool = False
    job: str | None = None  # who has it


class Asked(msgspec.Struct):
    """A job that has not run."""

    kind: str
    volumes: list[str]
    held: bool
    spec: Any
    until_us: int


class VolumeMachine(RuleBasedStateMachine):
    """One project; jobs wait until `work` lets all that are ready run."""

    in_file = False

    def __init__(self) -> None:
        super().__init__()
        self.runner, self.temporary = asyncio.Runner(), tempfile.TemporaryDirectory(prefix="milepost-volumes-")
        self.folder = Path(self.temporary.name)
        self.kept: dict[str, Kept] = {}
        self.jobs: dict[JobId, Asked] = {}

    def call(self, coroutine: Any) -> Any:
        return self.runner.run(coroutine)

    @initialize()
    def begin(self) -> None:
        self.rig = Rig(self.folder, in_file=self.in_file)
        self.call(self.rig.open())

    def teardown(self) -> None:
        self.call(self.rig.store.close())
        self.runner.close()
        self.temporary.cleanup()

    @staticmethod
    def draw(data: st.DataObject, known: dict[Any, Any]) -> Any:
        """One of them, by its place: ids are other ones each time."""
        return list(known)[data.draw(st.integers(0, len(known) - 1))]

    # --- the model's half ----------------------------------------------------------------------------------------------

    def size_counted(self, volume_id: str) -> int:
        kept = self.kept[volume_id]
        asked = self.jobs.get(JobId(kept.job)) if kept.job else None
        return asked.spec["new_size"] if asked is not None and asked.kind == "extendVolume" else kept.size

    def over_quota(self, count: int, gib: int) -> str | None:
        if count and len(self.kept) + count > COUNT_MAX:
            return "volume_quota"
        return "capacity_quota" if sum(map(self.size_counted, self.kept)) + gib > GIB_MAX else None

    def submit(self, kind: str, spec: Any, refusal: str | None, volumes: Sequence[str], *, held: bool = False) -> JobId | None:
        """Submitted, and refused exactly when the model says so."""
        try:
            job_id = self.call(self.rig.submit(kind, spec, held=held))
        except CallerError as error:
            assert error.fields["reason"] == refusal, f"{error} where {refusal} was expected"
            return None
        assert refusal is None, f"accepted where {refusal} was expected"
        until_us = self.rig.clock.now_us() + int(ORDER_S * 1e6)
        self.jobs[job_id] = Asked(kind, list(volumes), held, spec, until_us)
        for volume_id in volumes:
            self.kept[volume_id].job = job_id
        return job_id  # type: ignore[no-any-return]

    def forget(self, job_id: JobId) -> None:
        """It never ran: what it had reserved is given back."""
        asked = self.jobs.pop(job_id)
        for volume_id in asked.volumes:
            if self.kept[volume_id].made:
                self.kept[volume_id].job = None
            else:
                del self.kept[volume_id]

    # --- what happens ----------------------------------------------------------------------------------------------------

    @rule(size=st.sampled_from([9, 10, 30, 60]), count=st.sampled_from([1, 1, 2, 3]), held=st.booleans())
    def create(self, size: int, count: int, held: bool) -> None:
        refusal = "volume_size" if size < 10 else self.over_quota(count, size * count)
        volume = {"size": size, "volume_type": "SSD", "name": "v"}
        before = set(self.call(self.rig.volumes()))
        if count == 1:
            job_id = self.submit("createVolume", {"volume": volume}, refusal, [], held=held)
        else:
            job_id = self.submit("batchCreateVolume", {"volume": volume, "count": count}, refusal, [], held=held)
        if job_id is not None:
            new = sorted(set(self.call(self.rig.volumes())) - before)
            assert len(new) == count
            self.kept.update({volume_id: Kept(size, "SSD", job=job_id) for volume_id in new})
            self.jobs[job_id].volumes = new

    @precondition(lambda self: self.kept)
    @rule(data=st.data(), more=st.sampled_from([-5, 0, 1, 20, 100]), held=st.booleans())
    def extend(self, data: st.DataObject, more: int, held: bool) -> None:
        volume_id = self.draw(data, self.kept)
        kept = self.kept[volume_id]
        refusal = "volume_busy" if kept.job else "volume_shrink" if more <= 0 else self.over_quota(0, more)
        spec = {"volume_id": volume_id, "new_size": kept.size + more}
        self.submit("extendVolume", spec, refusal, [volume_id] if refusal is None else [], held=held)

    @precondition(lambda self: self.kept)
    @rule(data=st.data(), bulk=st.booleans())
    def delete(self, data: st.DataObject, bulk: bool) -> None:
        places = st.integers(0, len(self.kept) - 1)
        ids = [list(self.kept)[at] for at in data.draw(st.lists(places, min_size=1, max_size=3 if bulk else 1, unique=True))]
        refusal = "volume_busy" if any(self.kept[one].job for one in ids) else None
        spec = {"volume_ids": ids} if bulk else {"volume_id": ids[0]}
        self.submit("bulkDeleteVolume" if bulk else "deleteVolume", spec, refusal, ids if refusal is None else [])

    @precondition(lambda self: self.kept)
    @rule(data=st.data(), type_=st.sampled_from(["SSD", "SAS", "FLOPPY"]))
    def retype(self, data: st.DataObject, type_: str) -> None:
        volume_id = self.draw(data, self.kept)
        kept = self.kept[volume_id]
        refusal = "volume_busy" if kept.job else "volume_type_same" if kept.type == type_ else None
        refusal = "volume_type_unknown" if type_ == "FLOPPY" else refusal
        spec = {"volume_id": volume_id, "new_type": type_}
        self.submit("retypeVolume", spec, refusal, [volume_id] if refusal is None else [])

    @rule(kind=st.sampled_from(["extendVolume", "deleteVolume", "retypeVolume"]))
    def unknown(self, kind: str) -> None:
        spec = {"volume_id": "0" * 36, "new_size": 20, "new_type": "SSD"}
        self.submit(kind, spec, "volume_not_found", [])

    @rule()
    def work(self) -> None:
        """All jobs that are not held run, and end well."""
        self.call(self.rig.work())
        for job_id in [one for one, asked in self.jobs.items() if not asked.held]:
            asked = self.jobs.pop(job_id)
            assert self.call(self.rig.store.get_job(job_id)).state is State.SUCCEEDED
            for volume_id in asked.volumes:
                if asked.kind in ("deleteVolume", "bulkDeleteVolume"):
                    del self.kept[volume_id]
                    continue
                kept = self.kept[volume_id]
                kept.job, kept.made = None, True
                kept.size = asked.spec.get("new_size", kept.size)
                kept.type = asked.spec.get("new_type", kept.type)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        job_id = self.draw(data, self.jobs)
        if self.jobs[job_id].held:
            self.call(self.rig.service.release(job_id, project=None))
            self.jobs[job_id].held = False

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job_id = self.draw(data, self.jobs)
        self.call(self.rig.service.cancel(job_id, project=None))
        self.sweep()
        self.forget(job_id)

    @rule(seconds=st.sampled_from([1, 400, 1100]))
    def wait(self, seconds: int) -> None:
        """Orders that nobody paid go."""
        self.rig.clock.advance(seconds)
        now_us = self.rig.clock.now_us()
        self.call(self.rig.store.prune(now_us=now_us, keep_tombstone_s=60, keep_deliveries_s=60, limit=100))
        self.sweep()
        for job_id in [one for one, asked in self.jobs.items() if asked.held and asked.until_us <= now_us]:
            self.forget(job_id)

    @rule()
    def sweep(self) -> None:
        self.call(sweep(self.rig.store, self.folder, now_us=self.rig.clock.now_us()))

    # --- what must hold ----------------------------------------------------------------------------------------------------

    @invariant()
    def records_are_what_the_model_says(self) -> None:
        if not hasattr(self, "rig"):
            return
        found = self.call(self.rig.volumes())
        assert {
            volume_id: Kept(volume.size_gib, volume.volume_type, volume.file is not None, volume.job_id)
            for volume_id, volume in found.items()
        } == self.kept
        stable = {volume_id for volume_id, volume in found.items() if volume.status in ("available", "in-use")}
        free = {volume_id for volume_id, kept in self.kept.items() if kept.job is None}
        assert free <= stable
        assert {volume.size_asked_gib for volume_id, volume in found.items() if volume_id in free} <= {None}

    @invariant()
    def every_file_has_its_volume_and_its_size(self) -> None:
        sizes = {path.stem: path.stat().st_size for path in (self.folder / "volumes").glob("*.raw")}
        assert sizes == {volume_id: kept.size * GIB for volume_id, kept in self.kept.items() if kept.made}

    @invariant()
    def no_quota_is_exceeded(self) -> None:
        assert len(self.kept) <= COUNT_MAX
        assert sum(map(self.size_counted, self.kept)) <= GIB_MAX


class VolumeFileMachine(VolumeMachine):
    """The same on a store in a file."""

    in_file = True


class TestVolumesInMemory(VolumeMachine.TestCase):
    settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


class TestVolumesInAFile(VolumeFileMachine.TestCase):
    settings = settings(max_examples=15, stateful_step_count=25, deadline=None)


# --- at the same time ------------------------------------------------------------------------------------------------------


def at_once(in_file: bool, test: Any) -> None:
    async def run() -> None:
        with tempfile.TemporaryDirectory(prefix="milepost-volumes-") as folder:
            rig = Rig(Path(folder), in_file=in_file)
            await rig.open()
            try:
                await test(rig)
            finally:
                await rig.store.close()

    asyncio.run(run())


async def outcomes(submits: Sequence[Any]) -> tuple[list[JobId], list[str]]:
    """The jobs that were accepted, and the reasons of the others."""
    done = await asyncio.gather(*submits, return_exceptions=True)
    refused = [one for one in done if isinstance(one, BaseException)]
    assert all(isinstance(one, CallerError) for one in refused), refused
    return [one for one in done if isinstance(one, str)], [one.fields["reason"] for one in refused]  # type: ignore[misc, attr-defined]


CHANGES = st.one_of(
    st.integers(11, 140).map(lambda size: ("extendVolume", {"new_size": size})),
    st.just(("deleteVolume", {})),
    st.just(("retypeVolume", {"new_type": "SAS"})),
)


@pytest.mark.parametrize("in_file", [False, True])
@settings(max_examples=20, deadline=None)
@given(asked=st.lists(CHANGES, min_size=2, max_size=6), processes=st.integers(1, 3))
def test_of_changes_of_one_volume_at_the_same_time_exactly_one_is_accepted(in_file: bool, asked: Any, processes: int) -> None:
    """Also when they come in by different processes, which share the store and nothing else."""

    async def test(rig: Rig) -> None:
        await rig.submit("createVolume", {"volume": {"size": 10, "volume_type": "SSD"}})
        await rig.work()
        (volume_id,) = await rig.volumes()
        ways = [rig.process() for _ in range(processes)]
        submits = [
            rig.submit(kind, {"volume_id": volume_id, **spec}, service=ways[number % processes])
            for number, (kind, spec) in enumerate(asked)
        ]
        accepted, reasons = await outcomes(submits)
        assert (len(accepted), set(reasons)) == (1, {"volume_busy"})
        assert (await rig.volumes())[volume_id].job_id == accepted[0]
        await rig.work()
        assert (await rig.store.get_job(accepted[0])).state in FINAL

    at_once(in_file, test)


@pytest.mark.parametrize("in_file", [False, True])
@settings(max_examples=20, deadline=None)
@given(sizes=st.lists(st.sampled_from([10, 20, 50, 70]), min_size=2, max_size=12))
def test_creates_at_the_same_time_never_pass_a_quota(in_file: bool, sizes: list[int]) -> None:
    async def test(rig: Rig) -> None:
        submits = [rig.submit("createVolume", {"volume": {"size": size, "volume_type": "SSD"}}) for size in sizes]
        accepted, reasons = await outcomes(submits)
        volumes = await rig.volumes()
        used = sum(volume.size_gib for volume in volumes.values())
        assert len(volumes) == len(accepted) <= COUNT_MAX
        assert used <= GIB_MAX
        assert set(reasons) <= {"volume_quota", "capacity_quota"}
        if reasons:  # nobody is refused while there is room
            assert len(volumes) == COUNT_MAX or used + max(sizes) > GIB_MAX

    at_once(in_file, test)
