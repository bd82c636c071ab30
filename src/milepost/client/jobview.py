"""What the sync and the async job object have in common: everything that asks nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from milepost.client.known import Known, Stats, slimmed
from milepost.client.session import Session
from milepost.errors import Conflict, InvalidInput, MilepostError
from milepost.job import Failure, Progress, State
from milepost.wire import JobView


class SeenJob:
    """A job as it was last seen; it changes only when something is asked."""

    __slots__ = ("_known", "_session")

    def __init__(self, session: Session, known: Known) -> None:
        self._session, self._known = session, known

    @property
    def id(self) -> str:
        return self._known.id

    @property
    def view(self) -> JobView:
        """The job as last seen.  Errors: Conflict when it was only attached and never asked for."""
        if self._known.view is None:
            raise Conflict(f"job {self.id} was not asked for yet", job_id=self.id, hint="call refresh() or wait()")
        return self._known.view

    @property
    def kind(self) -> str:
        return self.view.kind

    @property
    def state(self) -> State:
        return self.view.state

    @property
    def status(self) -> str:
        """The cloud's own word for the state."""
        return self.view.status

    @property
    def done(self) -> bool:
        """Whether it was seen final, well or not."""
        return self._known.done

    @property
    def ok(self) -> bool:
        """Whether it was seen succeeded."""
        return self._known.view is not None and self._known.view.state is State.SUCCEEDED

    @property
    def result(self) -> Any:
        """What the job returned; None until it succeeded."""
        return self.view.result

    @property
    def error(self) -> Failure | None:
        """Why the job failed, or its last attempt did."""
        return self.view.error

    @property
    def progress(self) -> Progress | None:
        return self.view.progress

    @property
    def problem(self) -> MilepostError | None:
        """Why nothing more can be learnt of the job (not found, expired, …); set by as_completed and wait_all."""
        return self._known.error

    @property
    def stats(self) -> Stats:
        """What waiting for it cost: probes, failures survived, times throttled."""
        return self._known.stats

    @property
    def handle(self) -> dict[str, Any]:
        """Plain JSON that any process can wait on later; never a secret."""
        return self._session.handle(self.id, self._known.view.kind if self._known.view else None).to_json()

    @property
    def place_id(self) -> int:
        """The same for jobs of one client."""
        return id(self._session)

    def command(self, verb: str, *words: str) -> str:
        """The command line that does it where this job is; see `Client.command`."""
        return self._session.command(verb, *words)

    def forget(self) -> None:
        """Drop what the cloud said of it, but the state: for those who wait for very many jobs and have read the result."""
        if self._known.view is not None:
            self._known.view = slimmed(self._known.view)

    def __repr__(self) -> str:
        return f"<job {self.id} {self._known.state}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SeenJob) and other.id == self.id and other._session is self._session

    def __hash__(self) -> int:
        return hash(self.id)


S = TypeVar("S", bound=SeenJob)


def first_known(jobs: Sequence[S]) -> S:
    """The last one.  Errors: the first one's problem, when the last has one; InvalidInput when there is no job."""
    if not jobs:
        raise InvalidInput("no job was given to wait for", path="$.jobs")
    if jobs[-1].problem is not None:
        raise jobs[0].problem or jobs[-1].problem
    return jobs[-1]
