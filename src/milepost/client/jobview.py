"""What the sync and the async job object have in common: everything that asks nothing."""

from __future__ import annotations

from typing import Any

from milepost.client.known import Known, Stats
from milepost.client.session import Session
from milepost.errors import Conflict, MilepostError
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

    def __repr__(self) -> str:
        return f"<job {self.id} {self._known.state}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SeenJob) and other.id == self.id and other._session is self._session

    def __hash__(self) -> int:
        return hash(self.id)
