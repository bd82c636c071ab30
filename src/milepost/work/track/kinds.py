"""The kind `track`: a job in somebody else's cloud, followed to its end.

Each run of the function is one question.  Between two of them the job waits in the store and holds no slot; what was seen is in a
resource beside it (`Tracked`), so a restart loses nothing.

| what the cloud says            | what happens                                                                            |
|--------------------------------|-----------------------------------------------------------------------------------------|
| it goes on                     | progress as the cloud tells it; asked again when the cadence says so                     |
| it has ended                   | the final record is written, the sub-jobs are mirrored, then the job ends the same way   |
| nothing, 5xx, 429              | asked again; from the second time on it is shown as stale                                |
| 401, 403                       | shown, and tried again after `track_refused_s`: somebody will renew the credential       |
| 404                            | shown; for longer than `track_vanished_s` the job fails as `vanished`                    |
| 410                            | it ends as the tombstone says; without one it fails as `vanished` at once                |

Rules
1. A final answer is written down before anything else is done with it, and is never asked for again.
2. Cancelling a tracked job ends the tracking; the foreign job goes on.
3. What is wrong with our side (the key, the credential, the guard) never ends as the foreign job's failure: it is shown and
   tried again, but for what can never work: that fails with a code of its own.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from milepost import (
    CallerError,
    Conflict,
    Expired,
    JobView,
    MilepostError,
    NotFound,
    PermanentError,
    Resource,
    Running,
    Snooze,
    State,
    StoreUnavailable,
    kind,
)
from milepost.client.handle import Handle
from milepost.job import FINAL
from milepost.tracking import (
    CREDENTIAL,
    KIND,
    QUEUE,
    SUB_KIND,
    TRACKED,
    Credential,
    Tracked,
    credential_id,
    decode_credential,
    decode_tracked,
    encode_tracked,
)
from milepost.work.track.channel import Channel, Probed
from milepost.work.track.channels import channels
from milepost.work.track.mirror import decode_view, encode_view, end_of, progress_of, shows, sub_inputs, sub_jobs
from milepost.work.track.spec import SubInput, TrackInput

STORE_PAUSE_S = 5.0
SHARE_OF_GRACE = 0.1  # of `track_vanished_s`: how often a job that is missing is asked for
_SINCE = ("stale_since_us", "refused_since_us", "missing_since_us")


# Asking hurts neither side, and the foreign job goes on whatever becomes of us: a crash of ours is never its failure.
@kind(KIND, queue=QUEUE, crashes_max=math.inf)
async def track(job: Running, spec: TrackInput) -> Any:
    """Follow a job in another cloud to its end, which becomes this job's own."""
    return await Tracker(job, spec).run()


@kind(SUB_KIND, queue=QUEUE, crashes_max=math.inf)
async def track_sub(job: Running, spec: SubInput) -> Any:
    """End as a sub-job of a tracked job did; the tracker asks for it."""
    if spec.sub_jobs:
        await job.try_sub_jobs(sub_jobs(spec.sub_jobs, bytes_max=job.settings.input_bytes_max))
    return end_of(spec.state, spec.status, spec.result, spec.error, result_bytes_max=job.settings.result_bytes_max)


class Tracker:
    """One question about one job, and what follows from the answer."""

    def __init__(self, job: Running, spec: TrackInput) -> None:
        self.job, self.settings = job, job.settings
        self.handle: Handle = spec.where
        self.credential_name = spec.credential
        self.record = Tracked()

    async def run(self) -> Any:
        try:
            self.record = await self._load()
            if not self.record.final:
                await self._ask()
        except StoreUnavailable as error:  # nothing is known to be wrong with the foreign job
            raise Snooze(STORE_PAUSE_S, error.message) from None
        return await self._end()

    async def _ask(self) -> None:
        """Returns when the job has ended.  Errors: Snooze until the next question, PermanentError."""
        try:
            channel = channels().of(self.handle, self.job.project, await self._credential(), self.settings)
        except (Conflict, NotFound) as error:
            await self._troubled("refused_since_us", error)
            raise Snooze(self.settings.track_refused_s, error.message) from None
        probed = await channel.probe(self.handle.id)
        if probed.view is not None:
            await self._seen(channel, probed.view, probed.delay_s)
        elif probed.error is None:
            raise Snooze(probed.delay_s, "waits for its turn")
        else:
            await self._unseen(channel, probed, probed.error)

    # --- answers ---------------------------------------------------------------------------------------------------

    async def _seen(self, channel: Channel, view: JobView, delay_s: float) -> None:
        old = self.record
        before = None if old.view is None else decode_view(old.view)
        if view.done:
            try:
                view = msgspec.structs.replace(view, sub_jobs=await channel.sub_jobs(view))
            except MilepostError:  # the end itself is what matters
                pass
        troubled = any(getattr(old, name) is not None for name in _SINCE)
        changed = before is None or shows(before) != shows(view)
        self.record = Tracked(
            view=encode_view(view), state=str(view.state), status=view.status, seen_us=self.job.now_us(), final=view.done
        )
        if changed or troubled or view.done:
            await self._save()
        await self._show()
        if view.done:
            channel.forget(self.handle.id)
            return
        raise Snooze(delay_s, view.status)

    async def _unseen(self, channel: Channel, probed: Probed, error: MilepostError | PermanentError) -> None:
        if isinstance(error, PermanentError):
            raise error
        if isinstance(error, Expired) and error.state in [str(state) for state in FINAL]:
            await self._vanish(State(error.state), error)
            return
        if isinstance(error, NotFound | Expired):
            await self._troubled("missing_since_us", error)
            since_us, grace_s = self.record.missing_since_us or 0, self.settings.track_vanished_s
            left_s = grace_s - (self.job.now_us() - since_us) / 1e6
            if isinstance(error, Expired) or left_s <= 0:
                await self._vanish(None, error)
                return
            pause_s = max(self.settings.track_first_s, min(SHARE_OF_GRACE * grace_s, self.settings.track_cap_s))
            raise Snooze(min(pause_s, left_s), error.message)
        if isinstance(error, CallerError):  # refused, or not a request that this cloud understands
            await self._troubled("refused_since_us", error)
            raise Snooze(self.settings.track_refused_s, error.message)
        # One lost answer is nothing to speak of: the job's own history has it as the note of a snooze.
        if channel.troubled(self.handle.id) or self.record.stale_since_us is not None:
            await self._troubled("stale_since_us", error)
        raise Snooze(probed.delay_s, error.message)

    async def _troubled(self, name: str, error: MilepostError) -> None:
        """The record says since when, and progress tells it to everybody."""
        if getattr(self.record, name) is None:
            cleared: dict[str, Any] = dict.fromkeys(_SINCE)
            cleared[name] = self.job.now_us()
            self.record = msgspec.structs.replace(self.record, trouble=error.message[:300], **cleared)
            await self._save()
        await self._show()

    async def _vanish(self, state: State | None, error: MilepostError) -> None:
        """The cloud has forgotten the job; a tombstone may tell how it ended."""
        self.record = msgspec.structs.replace(self.record, final=True, vanished=True, trouble=error.message[:300])
        if state is not None:
            self.record = msgspec.structs.replace(self.record, state=str(state), status=str(state))
        await self._save()

    # --- the end ---------------------------------------------------------------------------------------------------

    async def _end(self) -> Any:
        record = self.record
        if record.vanished:
            return self._end_of_vanished()
        assert record.view is not None
        view = decode_view(record.view)
        subs = sub_inputs(view)[: self.settings.sub_jobs_max]
        if subs:
            await self.job.try_sub_jobs(sub_jobs(subs, bytes_max=self.settings.input_bytes_max))
        return end_of(view.state, view.status, view.result, view.error, result_bytes_max=self.settings.result_bytes_max)

    def _end_of_vanished(self) -> Any:
        record = self.record
        if record.state == State.SUCCEEDED:
            return None
        if record.state in (State.FAILED, State.CANCELLED):
            return end_of(State(record.state), record.state, None, None, result_bytes_max=0)
        details = {
            "handle": self.handle.to_json(),
            "last_state": record.state,
            "last_status": record.status,
            "last_seen_us": record.seen_us,
        }
        last = f"it was {record.status} when it was last seen" if record.status else "it was never seen"
        raise PermanentError("vanished", f"the cloud does not know this job (any more): {record.trouble}; {last}", details)

    # --- the store -------------------------------------------------------------------------------------------------

    async def _credential(self) -> Credential | None:
        """Errors: NotFound."""
        if self.credential_name is None:
            return None
        try:
            found = await self.job.resources.get(CREDENTIAL, credential_id(self.job.project, self.credential_name))
        except NotFound:
            raise NotFound(f"there is no credential {self.credential_name!r}", hint="milepost credential add") from None
        return decode_credential(found.doc)

    async def _load(self) -> Tracked:
        try:
            return decode_tracked((await self.job.resources.get(TRACKED, self.job.id)).doc)
        except NotFound:
            return Tracked()

    async def _save(self) -> None:
        now_us = self.job.now_us()
        await self.job.resources.put(
            Resource(
                type=TRACKED,
                id=self.job.id,
                project=self.job.job.project,
                doc=encode_tracked(self.record),
                created_us=self.job.job.created_us,
                updated_us=now_us,
                version=0,
            )
        )

    async def _show(self) -> None:
        since_us = next((since for name in _SINCE if (since := getattr(self.record, name)) is not None), None)
        shown = progress_of(self.record, None if since_us is None else _instant(since_us))
        if shown != self.job.job.progress:
            await self.job.progress(shown.done, shown.total, shown.note, unit=shown.unit)


def _instant(at_us: int) -> str:
    from milepost.wire import rfc3339

    return rfc3339(at_us // 1_000_000 * 1_000_000)[:19] + "Z"  # type: ignore[index]
