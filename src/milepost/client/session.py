"""One client's view of one cloud: where it is, who asks, and how a single request is put and survived.

Rules
1. `ask` adds endpoint and identity, and answers an expired token with a new one, once.
2. `call` survives what may pass (no answer, 5xx, 429) for `patience_s`, but never repeats a request that could do its work twice.
3. JSON that was cut off on its way is no answer.
4. Secrets are in headers only: no error, handle, hint or log line has one.
"""

from __future__ import annotations

import logging
import random
import shlex
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import msgspec

from milepost.client.budget import BUDGETS, Budget, Budgets, Limit
from milepost.client.cadence import Cadence
from milepost.client.cadence import retry_after_s as read_retry_after
from milepost.client.dialects import PROJECT, Dialect
from milepost.client.durations import Durations, History
from milepost.client.handle import Handle
from milepost.client.identity import Credentials, read_token, token_request
from milepost.client.places import PLACES, Place, Places
from milepost.client.signing import Signer
from milepost.client.steps import Ask, Send, Sleep, Steps
from milepost.clock import Clock
from milepost.errors import InvalidInput, MilepostError, Throttled, Unauthenticated, Unreachable
from milepost.wire import JobView, Request, Response

log = logging.getLogger("milepost.client")

Reply = Response | Unreachable
FRESH_S = 60.0  # a new token that is refused so soon, and was never accepted, is not exchanged for another one


class Session:
    """What all conversations of a client share."""

    def __init__(
        self,
        dialect: Dialect,
        endpoint: str | None,
        *,
        clock: Clock,
        token: str | None = None,
        project: str | None = None,
        credentials: Credentials | None = None,
        signer: Signer | None = None,
        cloud: str | None = None,
        request_timeout_s: float = 30.0,
        patience_s: float = 15.0,
        cadence: Cadence | None = None,
        random: Callable[[], float] = random.random,
        history: History | None = None,
        limit: Limit | None = None,
        budgets: Budgets = BUDGETS,
        places: Places = PLACES,
    ) -> None:
        if endpoint is not None and not endpoint.startswith(("http://", "https://")):
            raise InvalidInput(f"the endpoint is {endpoint!r}; it must begin with http:// or https://", path="$.endpoint")
        if endpoint is None and credentials is None:
            raise InvalidInput("neither an endpoint nor credentials were given", path="$.endpoint")
        for name, value in (("request_timeout_s", request_timeout_s), ("patience_s", patience_s)):
            if value < 0 or (value == 0 and name == "request_timeout_s"):
                raise InvalidInput(f"{name} is {value:g}; it must be above 0", path=f"$.{name}")
        self.dialect = dialect
        self.endpoint = None if endpoint is None else dialect.endpoint(endpoint)
        self.project, self.credentials, self.cloud = project, credentials, cloud
        if signer is not None:
            if token is not None or credentials is not None:
                raise InvalidInput("a key pair and a token or credentials were given; give one of them", path="$.credentials")
            self.project = project or signer.project
        self._signer = signer
        self.clock, self.random = clock, random
        self.request_timeout_s, self.patience_s = request_timeout_s, patience_s
        self.cadence = cadence or Cadence()
        self.history = history or History()
        self._limit, self._budgets, self._places = limit, budgets, places
        self._budget: Budget | None = None
        self._place: Place | None = None
        self._token = token
        self._granted_s: float | None = None  # when the token was made; None when it was accepted once, or was given
        self._warned: set[str] = set()

    # --- one request ------------------------------------------------------------------------------------------------

    def ask(self, request: Request, *, timeout_s: float | None = None) -> Steps[Reply]:
        """Put one request; the reply is a response of any status but an unexpected 401, or an Unreachable.

        Errors: Unauthenticated when the credentials are refused.
        """
        refused = yield from self.ensure_token()
        if refused is not None:
            return refused
        token = self._token
        reply: Reply = yield Ask(self.addressed(request), timeout_s or self.request_timeout_s)
        if isinstance(reply, Response) and reply.status == 401:
            renewed = yield from self._renew(token)
            if isinstance(renewed, Unreachable):
                return renewed
            if renewed:
                reply = yield Ask(self.addressed(request), timeout_s or self.request_timeout_s)
        return self._whole(reply)

    def send(self, tag: Any, request: Request, *, timeout_s: float | None = None) -> Steps[Unreachable | None]:
        """Begin to send it; what comes back is for `received`.  An Unreachable when nobody could be asked for a token."""
        refused = yield from self.ensure_token()
        if refused is None:
            yield Send(tag, Ask(self.addressed(request), timeout_s or self.request_timeout_s))
        return refused

    def received(self, reply: Reply, token: str | None) -> Steps[Reply | None]:
        """The reply to a request that was sent with this token; None when it is to be sent again, with a new one.

        Errors: Unauthenticated when the credentials are refused.
        """
        if isinstance(reply, Response) and reply.status == 401:
            renewed = yield from self._renew(token)
            if isinstance(renewed, Unreachable):
                return renewed
            if renewed:
                return None
        return self._whole(reply)

    @property
    def token(self) -> str | None:
        """The one that requests carry now."""
        return self._token

    def _whole(self, reply: Reply) -> Reply:
        """The reply; a good one that says that it is JSON, and is not, was cut off by something in between."""
        if isinstance(reply, Response) and reply.status < 500 and reply.status != 401:
            self._granted_s = None
        if not isinstance(reply, Response) or not 200 <= reply.status < 300 or reply.status == 204:
            return reply
        if not reply.headers.get("content-type", "").startswith("application/json"):
            return reply
        try:
            msgspec.json.decode(reply.body, type=msgspec.Raw)
        except msgspec.DecodeError as error:
            return Unreachable(f"the answer of {self.endpoint} is no whole JSON: {error}", endpoint=self.endpoint, sent=True)
        return reply

    def call(self, request: Request, *, job_id: str | None = None, repeatable: bool = True) -> Steps[Response]:
        """A good answer (2xx), after as many tries as patience_s allows.

        Errors: the answer's typed error; Unreachable with `tries`.
        """
        started_s = self.clock.monotonic_s()
        failures = 0
        while True:
            asked_s = self.clock.monotonic_s()
            self.budget.spend(asked_s)
            reply = yield from self.ask(request)
            self.heed(reply, asked_s)
            if isinstance(reply, Response) and 200 <= reply.status < 300:
                return reply
            failures += 1
            error, delay_s = self.judge(reply, failures, job_id)
            may_repeat = repeatable or error.fields.get("sent") is False or (isinstance(reply, Response) and reply.status == 429)
            elapsed_s = self.clock.monotonic_s() - started_s
            left_s = self.patience_s - elapsed_s
            too_late = left_s <= 0 or (isinstance(error, Throttled) and delay_s > left_s)
            if not error.retryable or not may_repeat or too_late:
                error.elapsed_s = elapsed_s
                error.fields["tries"] = failures
                if error.hint is None and error.fields.get("sent") is False and self.dialect.name == "native":
                    error.hint = "is a server running there? `milepost serve` starts one on this machine"
                raise error
            if failures == 1:
                log.info("%s; trying again for %.0f s", error.message, self.patience_s)
            yield Sleep(min(delay_s, left_s))

    def judge(self, reply: Reply, failures: int, job_id: str | None) -> tuple[MilepostError, float]:
        """The error that a reply which is no success stands for, and the pause that it calls for, seconds."""
        if isinstance(reply, Unreachable):
            reply.job_id = reply.job_id or job_id
            return reply, self.cadence.after_failure(failures, self.random)
        error = self.dialect.read_error(reply, job_id)
        if reply.status in (429, 503):
            return error, self.cadence.after_throttle(failures, read_retry_after(reply.headers), self.random)
        return error, self.cadence.after_failure(failures, self.random)

    def addressed(self, request: Request) -> Request:
        """The request with its absolute URL and the caller's identity; signed, where there is a signer, as of now.

        Errors: InvalidInput when a server's link leads to another host: it would be told the token.
        """
        assert self.endpoint is not None
        url = request.url.replace(PROJECT, quote(self._project_id(), safe="")) if PROJECT in request.url else request.url
        base = self.dialect.base(self.endpoint, url)
        if url.startswith("/"):
            url = base + url
        elif not url.startswith(base + "/"):
            raise InvalidInput(f"a link leads out of {base}: {url[:200]}", path="$.url")
        identity = self.dialect.identify(self._token, self.project if self.credentials is None else None)
        addressed = Request(request.method, url, {**request.headers, **identity}, request.body)
        return addressed if self._signer is None else self._signer.sign(addressed, at_us=self.clock.now_us())

    def _project_id(self) -> str:
        """Errors: InvalidInput when none was given."""
        if not self.project:
            raise InvalidInput(
                f"{self.dialect.title} needs a project id",
                path="$.project",
                hint="give project=…, --project ID or MILEPOST_PROJECT; the console shows it under My Credentials",
            )
        return self.project

    # --- identity ---------------------------------------------------------------------------------------------------

    def ensure_token(self) -> Steps[Unreachable | None]:
        """Ask for a token when there are credentials and none yet."""
        if self.credentials is None or (self._token is not None and self.endpoint is not None):
            return None
        return (yield from self._authenticate())

    def _renew(self, refused: str | None) -> Steps[bool | Unreachable]:
        """Whether there is another token now than the one that was refused; Unreachable when nobody could be asked for one."""
        if self.credentials is None:
            return False
        if self._token != refused:  # another conversation of this client was faster
            return True
        if self._granted_s is not None and self.clock.monotonic_s() - self._granted_s < FRESH_S:
            return False
        return (yield from self._authenticate()) or True

    def _authenticate(self) -> Steps[Unreachable | None]:
        assert self.credentials is not None
        reply: Reply = yield Ask(token_request(self.credentials), self.request_timeout_s)
        if isinstance(reply, Unreachable):
            reply.fields["sent"] = False  # what the token is for was not sent yet, or was refused
            return reply
        if reply.status in (408, 429) or reply.status >= 500:
            return Unreachable(f"the identity service answered {reply.status}", endpoint=self.credentials.auth_url, sent=False)
        granted = read_token(self.credentials, reply)
        self._token, self._granted_s = granted.token, self.clock.monotonic_s()
        self.project = self.project or granted.project_id
        if self.endpoint is None:
            self.endpoint = self._endpoint_of(granted.endpoints)
        return None

    def _endpoint_of(self, endpoints: dict[str, str]) -> str:
        wanted = self.dialect.service_type
        if wanted not in endpoints:
            assert self.credentials is not None
            raise Unauthenticated(
                f"the catalog of {self.credentials.auth_url} has no {wanted} service"
                + (f" in region {self.credentials.region}" if self.credentials.region else ""),
                hint="give the endpoint itself, or check region and interface",
            )
        return self.dialect.endpoint(endpoints[wanted])

    # --- what all clients of the process share ----------------------------------------------------------------------

    @property
    def budget(self) -> Budget:
        """Of requests to this server in the name of this project."""
        if self._budget is None:
            where = self.endpoint or (self.credentials.auth_url if self.credentials is not None else "")
            budget = self._budgets.of(where, self.project, self._limit)
            if self.endpoint is None:  # before the identity service told it
                return budget
            self._budget = budget
        return self._budget

    @property
    def place(self) -> Place:
        """Who waits for which job here, of those who ask with the same identity."""
        if self._place is None:
            who = self._signer or self.credentials or self._token
            self._place = self._places.of((self.dialect.name, self.endpoint, self.project, who))
        return self._place

    def turn(self, rank_s: float, who: object, cadence: Cadence) -> float:
        """0 when a probe may be sent now, and was counted; else the pause before this one asks again.

        The user's own interval is kept to, unless the user set a limit, too.
        """
        now_s = self.clock.monotonic_s()
        if cadence.every_s is not None and self.budget.limit is None:
            self.budget.spend(now_s)
            return 0.0
        return self.budget.turn(now_s, rank_s, who)

    def heed(self, reply: Reply, asked_s: float) -> None:
        """Slow down or speed up, as the reply to a probe says."""
        if not isinstance(reply, Response):
            return
        now_s = self.clock.monotonic_s()
        if throttles(reply):
            self.budget.slow_down(now_s, read_retry_after(reply.headers), asked_s=asked_s)
        elif reply.status < 500:
            self.budget.speed_up(now_s, asked_s=asked_s)

    # --- what a user is told ----------------------------------------------------------------------------------------

    def command(self, verb: str, *job_ids: str) -> str:
        """The command line that goes on with these jobs.  No secret is in it: those come from the environment or the cloud."""
        words = ["milepost", verb, *job_ids]
        if self.cloud is not None:
            words += ["--cloud", self.cloud]
        else:
            if self.dialect.name != "native":
                words += ["--wire", self.dialect.name]
            if self.endpoint is not None:
                words += ["--url", self.endpoint]
            if self.project is not None:
                words += ["--project", self.project]
        return shlex.join(words)

    def handle(self, job_id: str, kind: str | None = None) -> Handle:
        return Handle(
            id=job_id, wire=self.dialect.name, endpoint=self.endpoint, project=self.project, cloud=self.cloud, kind=kind
        )

    # --- what was learnt --------------------------------------------------------------------------------------------

    def durations(self, view: JobView | None) -> Durations | None:
        """How long jobs of this one's kind take at this endpoint, where that is known."""
        return None if view is None or self.endpoint is None else self.history.of(self.endpoint, view.kind)

    def learn_duration(self, view: JobView, age_s: float) -> None:
        """The job was seen to end: by its own instants, else at this age."""
        if self.endpoint is None:
            return
        took_s = age_s
        if view.created_us is not None and view.ended_us is not None:
            took_s = (view.ended_us - view.created_us) / 1e6
        self.history.add(self.endpoint, view.kind, max(took_s, 0.0))

    def warn_unknown(self, status: str, job_id: str) -> None:
        """Say once per client that a status is not known, and that it is taken for running."""
        if status not in self._warned and len(self._warned) < 100:
            self._warned.add(status)
            log.warning("status %r of job %s is not known: taken as still running", status, job_id)


def throttles(reply: Reply) -> bool:
    """Whether it asks to slow down: the business of the budget, not of the job that was asked about."""
    return isinstance(reply, Response) and reply.status in (429, 503)


def encode_input(value: Any) -> bytes | None:
    """The input as JSON text; None for none.  Errors: InvalidInput when it has no JSON form."""
    if value is None:
        return None
    try:
        return msgspec.json.encode(value)
    except (TypeError, OverflowError, ValueError) as error:
        raise InvalidInput(f"the input has no JSON form: {error}", path="$.input") from error
