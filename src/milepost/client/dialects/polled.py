"""What the clouds have in common that can only be polled: no events, no verbs, no options but what their own bodies have."""

from __future__ import annotations

from typing import ClassVar, NoReturn

from milepost.client.dialects import Page, Query, Spec, excerpt
from milepost.errors import Conflict, InvalidInput, ProtocolError
from milepost.wire import Request, Response

NATIVE = "use wire='native'"


class Polled:
    """The rest of a `Dialect` for a job that is asked for by its id, and nothing more."""

    title: ClassVar[str]
    noun: ClassVar[str] = "job"
    request_id: ClassVar[str]  # the header that names a request
    long_poll_s: ClassVar[float] = 0.0
    bulk_max: ClassVar[int] = 0
    changes_max: ClassVar[int] = 0
    streams: ClassVar[bool] = False
    lists: ClassVar[bool] = False
    found_grace_s: ClassVar[float] = 10.0
    submits_once: ClassVar[bool] = False

    def base(self, endpoint: str, path: str) -> str:  # noqa: ARG002 - it has one host
        return endpoint

    def identify(self, token: str | None, project: str | None) -> dict[str, str]:
        headers = {"X-Auth-Token": token} if token else {}
        return {**headers, "X-Project-Id": project} if project else headers

    def native_id(self, job_id: str) -> str:
        """The job's id on a Milepost server's own API."""
        return job_id

    def refuse_options(self, spec: Spec, *taken: str) -> None:
        """Errors: InvalidInput for an option of a submit that is given and not one of those the cloud takes."""
        options = {
            "queue": spec.queue,
            "priority": spec.priority,
            "labels": spec.labels or None,
            "held": spec.held or None,
            "run_at": spec.run_at,
            "attempts_max": spec.attempts_max,
            "timeout_s": spec.timeout_s,
            "deadline_s": spec.deadline_s,
            "callback": spec.callback_url,
            "callback_on": spec.callback_on or None,
        }
        given = [name for name, value in options.items() if value is not None and name not in taken]
        if given:
            raise InvalidInput(f"{self.title} has no {', '.join(given)}", path=f"$.{given[0]}", hint=f"leave it out, or {NATIVE}")

    def list_jobs(self, query: Query) -> Request:  # noqa: ARG002 - it has no list
        raise Conflict(
            f"{self.title} cannot list jobs: it knows a job by its id alone",
            hint="keep the id that a submit answers (milepost get ID); a Milepost server lists with --wire native",
        )

    def act(self, job_id: str, verb: str) -> Request:
        self._only_native(f"cannot {verb} a {self.noun}", job_id, verb)

    def events(self, job_id: str, *, after: int = 0, tree: bool = False, stream: bool = False) -> Request:  # noqa: ARG002
        self._only_native(f"keeps no history of a {self.noun}", job_id, "events")

    def _only_native(self, what: str, job_id: str, command: str) -> NoReturn:
        own = f"milepost {command} {self.native_id(job_id)} --wire native"
        raise Conflict(f"{self.title} {what}", job_id=job_id, hint=f"on a Milepost server use its own API: {own}")

    def read_page(self, response: Response) -> Page:
        raise self.not_ours("a page of jobs", response, ValueError("there are none"))

    def not_ours(self, what: str, response: Response, error: Exception) -> ProtocolError:
        """The error for an answer that is not one of this API."""
        return ProtocolError(
            f"the answer is not {what}: {error}; it begins {excerpt(response.body, 80)!r}",
            status=response.status,
            request_id=response.headers.get(self.request_id),
            hint=f"is this the endpoint of {self.title}?",
        )
