"""What a kind checks and reserves when a job is submitted: states, quotas, ids.

A kind's `admit` function runs in `Service.submit`, for every wire alike.  It sees what is stored, refuses with a CallerError,
or returns the input that the job will have and the writes that reserve what the job needs.  Those writes and the job are one
transaction: a job is never accepted without its reservation, nor the other way round.

Rules
1. It does nothing but read: everything it changes is in `Admitted.writes`.
2. It may run more than once for one submit: when somebody else changed what it had read, it is asked again.
3. Two admissions cannot both take the last free place.  Those of one project run one at a time in one process; and who has listed
   what a project has makes its writes on the condition that no other process has added to it since (`View.guards`).
4. A submit whose idempotency key already has a job is not admitted again.
5. Sub-jobs are not admitted: their parent reserved for them, or they ask for it themselves with `Running.admit`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from milepost.errors import NotFound
from milepost.job import JobId, ProjectId
from milepost.store import Resource, Store, Write

GUARD = "guard"  # the resource type of what says that a project's resources of a type were counted, and added to

if TYPE_CHECKING:
    from milepost.settings import Settings


class Admitted(msgspec.Struct, frozen=True, kw_only=True):
    """The job may be made.  `input` replaces the submitted one; `writes` are made with the job."""

    input: Any
    writes: Sequence[Write] = ()


class View:
    """Resources as they are stored, with writes on top that are decided and not made."""

    def __init__(self, store: Store, project: ProjectId) -> None:
        self._store, self._project = store, project
        self._changed: dict[tuple[str, str], Resource | None] = {}
        self._guards: dict[str, int] = {}  # by type, the version that it had before the type was listed

    async def get(self, type: str, id: str) -> Resource:
        """Another project's are shown too: what may be used of them, the kind decides.  Errors: NotFound."""
        found = self._changed.get((type, id)) if (type, id) in self._changed else await self._store.get_resource(type, id)
        if found is None:
            raise NotFound(f"no {type} {id}")
        return found

    async def list(self, type: str) -> list[Resource]:
        """The project's own, oldest first."""
        if type not in self._guards:
            self._guards[type] = await self._guard_version(type)
        stored = {one.id: one for one in await self._store.list_resources(type, project=self._project)}
        for (changed_type, id_), resource in self._changed.items():
            if changed_type != type:
                continue
            if resource is None or resource.project != self._project:
                stored.pop(id_, None)
            else:
                stored[id_] = resource
        return sorted(stored.values(), key=lambda one: (one.created_us, one.id))

    async def _guard_version(self, type: str) -> int:
        try:
            return (await self._store.get_resource(GUARD, self._guard_id(type))).version
        except NotFound:
            return 0

    def _guard_id(self, type: str) -> str:
        return f"{self._project}/{type}"

    def guards(self, now_us: int) -> Sequence[Write]:
        """What makes the writes fail (VersionConflict) when another process listed the same and wrote since it was listed here.

        The store checks versions in the transaction that writes, whoever else writes to it: a count of rows has no version of its
        own, so this record lends it one.
        """
        return [
            Write(
                resource=Resource(
                    type=GUARD,
                    id=self._guard_id(type),
                    project=self._project,
                    doc=b"{}",
                    created_us=now_us,
                    updated_us=now_us,
                    version=0,
                ),
                if_version=version,
            )
            for type, version in self._guards.items()
        ]

    async def add(self, writes: Sequence[Write]) -> None:
        """From now on these show."""
        for write in writes:
            resource = write.resource
            try:
                version = (await self.get(resource.type, resource.id)).version
            except NotFound:
                version = 0
            place = (resource.type, resource.id)
            self._changed[place] = None if write.delete else msgspec.structs.replace(resource, version=version + 1)


class Admission:
    """What an `admit` function may look at.

    job_id: the id that the job will have.  held: whether it waits for a release.  origin: who asks (`role` is `member` where that
    is less than an admin).  now_us: Unix µs.  resources: `get(type, id)` and `list(type)`.
    """

    __slots__ = ("held", "job_id", "now_us", "origin", "project", "resources", "settings")

    def __init__(
        self,
        *,
        job_id: JobId,
        project: ProjectId,
        origin: Mapping[str, str],
        held: bool,
        now_us: int,
        settings: Settings,
        resources: View,
    ) -> None:
        self.job_id, self.project, self.origin, self.held = job_id, project, origin, held
        self.now_us, self.settings, self.resources = now_us, settings, resources


__all__ = ["GUARD", "Admission", "Admitted", "View"]
