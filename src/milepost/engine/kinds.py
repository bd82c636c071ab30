"""Kinds: which function runs a job, with what input, and how.

`@kind("name")` puts a function into the registry.  An `async def` runs on the engine's loop, a `def` in a thread, and
`isolated=True` in a subprocess with limits that can be killed at once.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_type_hints

import msgspec

from milepost.errors import InvalidInput, UnknownKind
from milepost.job import PRIORITY_DEFAULT, PRIORITY_FIRST, PRIORITY_LAST, State
from milepost.process import Limits

if TYPE_CHECKING:
    from milepost.engine.admission import Admission, Admitted

Style = Literal["async", "thread", "isolated"]
F = TypeVar("F", bound=Callable[..., Any])
Admit = Callable[["Admission", Any], Awaitable["Admitted"]]

NAME_CHARS_MAX = 255  # as the setting name_chars_max has it when nobody changes it


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """One registered function and how its jobs run."""

    name: str
    function: Callable[..., Any]
    style: Style
    input_type: Any  # None: takes no input
    result_type: Any
    queue: str = "default"
    priority: int = PRIORITY_DEFAULT
    attempts: int = 1
    timeout_s: float | None = None  # of one attempt
    crashes_max: float | None = None  # None: the setting's
    limits: Limits = Limits()
    keep_s: dict[State, float] = {}  # retention by final state; missing: the setting's
    description: str = ""
    decoder: msgspec.json.Decoder[Any] | None = None
    admit: Admit | None = None

    def read_input(self, raw: bytes) -> Any:
        """The typed input.  Errors: InvalidInput with the path of the field."""
        if self.decoder is None:
            return None
        try:
            return self.decoder.decode(raw)
        except msgspec.ValidationError as error:
            message, _, path = str(error).partition(" - at `")
            inner = path.removesuffix("`").removeprefix("$") if path else ""
            if message.startswith("Invalid enum value") and (words := _allowed(self.schemas()[0], inner)):
                message += f" (allowed: {', '.join(words)})"
            raise InvalidInput(f"{message} at $.input{inner}", path=f"$.input{inner}", kind=self.name) from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidInput(f"input is not JSON: {error}", path="$.input", kind=self.name) from error
        except RecursionError:
            raise InvalidInput("input is nested too deeply", path="$.input", kind=self.name) from None

    def schemas(self) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
        """JSON Schemas of input and result; None for no input, or where the type has none."""
        return _schema(self.input_type), _schema(self.result_type)


class Kinds:
    """A registry of kinds by name."""

    def __init__(self) -> None:
        self._kinds: dict[str, Kind] = {}

    def add(self, kind: Kind) -> None:
        """Errors: ValueError when the name has another function already."""
        old = self._kinds.get(kind.name)
        if old is not None and old.function is not kind.function and _place(old.function) != _place(kind.function):
            raise ValueError(f"kind {kind.name!r} is registered twice: {_place(old.function)} and {_place(kind.function)}")
        self._kinds[kind.name] = kind

    def change(self, name: str, **fields: Any) -> None:
        """The kind has these fields from now on.  Errors: UnknownKind."""
        self._kinds[name] = msgspec.structs.replace(self.get(name), **fields)

    def get(self, name: str) -> Kind:
        """Errors: UnknownKind, naming those that exist."""
        try:
            return self._kinds[name]
        except KeyError:
            known = ", ".join(sorted(self._kinds)) or "none"
            raise UnknownKind(f"no kind {name[:80]!r}; registered: {known}", path="$.kind") from None

    def __contains__(self, name: str) -> bool:
        return name in self._kinds

    def __iter__(self) -> Iterator[Kind]:
        return iter(sorted(self._kinds.values(), key=lambda kind: kind.name))

    def kind(
        self,
        name: str,
        *,
        queue: str = "default",
        priority: int = PRIORITY_DEFAULT,
        attempts: int = 1,
        timeout_s: float | None = None,
        crashes_max: float | None = None,
        isolated: bool = False,
        limits: Limits | None = None,
        keep_s: dict[State, float] | None = None,
        admit: Admit | None = None,
    ) -> Callable[[F], F]:
        """Register the function under `name`; the function itself is returned unchanged.

        Shape: `function(job)` or `function(job, spec)`; the annotation of `spec` is the input's type, the return annotation
        the result's (anything msgspec can encode).  An `async def` is given a `Running`, a `def` a `RunningInThread`, an isolated
        one an `IsolatedRunning`.
        queue, priority (0 is first, 9 last), attempts: defaults that a submission may replace.  timeout_s: of one attempt.
        crashes_max: workers that may die under one of its jobs until it fails as poison; None: the setting's; `math.inf`: any
        number, for work that no worker dies of: then a crash is not held against the job at all.
        isolated: run it in a subprocess, with these limits.  keep_s: how long its jobs are kept, by final state.
        admit: checks and reserves when a job is submitted, before it exists; see `Admission`.
        Errors: TypeError when the function has another shape, or is async and isolated; ValueError when the name is taken, or
        one of these is out of its range.
        """
        _check(name, queue=queue, priority=priority, attempts=attempts, timeout_s=timeout_s, crashes_max=crashes_max)

        def register(function: F) -> F:
            input_type, result_type = _signature(name, function)
            if isolated and inspect.iscoroutinefunction(function):
                raise TypeError(f"kind {name!r}: isolated kinds are plain functions, not async")
            style: Style = "async" if inspect.iscoroutinefunction(function) else "isolated" if isolated else "thread"
            self.add(
                Kind(
                    name=name,
                    function=function,
                    style=style,
                    input_type=input_type,
                    result_type=result_type,
                    queue=queue,
                    priority=priority,
                    attempts=attempts,
                    timeout_s=timeout_s,
                    crashes_max=crashes_max,
                    limits=limits or Limits(),
                    keep_s=keep_s or {},
                    description=inspect.getdoc(function) or "",
                    decoder=None if input_type is None else msgspec.json.Decoder(input_type),
                    admit=admit,
                )
            )
            return function

        return register


def _check(name: str, *, queue: str, priority: int, attempts: int, timeout_s: float | None, crashes_max: float | None) -> None:
    """What a submission is checked for, so that no kind's own default refuses each of its jobs.  Errors: ValueError."""
    for what, text in (("a kind's name", name), (f"kind {name!r}: queue", queue)):
        if not isinstance(text, str) or not text.isprintable() or not 1 <= len(text) <= NAME_CHARS_MAX:
            raise ValueError(f"{what} is {text!r}; it is a text of 1 to {NAME_CHARS_MAX} printable characters")
    if priority not in range(PRIORITY_FIRST, PRIORITY_LAST + 1):
        raise ValueError(f"kind {name!r}: priority is {priority}; it is from {PRIORITY_FIRST} (first) to {PRIORITY_LAST}")
    if attempts < 1:
        raise ValueError(f"kind {name!r}: attempts is {attempts}; it is at least 1")
    if timeout_s is not None and not timeout_s > 0:
        raise ValueError(f"kind {name!r}: timeout_s is {timeout_s}; it is above 0, or None for no limit")
    if crashes_max is not None and not crashes_max >= 1:
        raise ValueError(f"kind {name!r}: crashes_max is {crashes_max}; it is at least 1, math.inf for no limit")


def _allowed(schema: dict[str, Any] | None, path: str) -> list[str]:
    """The words that the schema allows at this path, `.a.b[0]`; none where it does not say."""
    definitions = (schema or {}).get("$defs", {})

    def looked_up(one: dict[str, Any]) -> dict[str, Any]:
        return definitions.get(str(one["$ref"]).rpartition("/")[2], {}) if "$ref" in one else one

    found = looked_up(schema or {})
    for name, index in re.findall(r"\.([^.\[]+)|(\[[^\]]*\])", path):
        rest = found.get("additionalProperties", {})  # a path says `[...]` for a key of a map
        step = found.get("items", rest) if index else found.get("properties", {}).get(name, rest)
        found = looked_up(step) if isinstance(step, dict) else {}
    choices = [looked_up(one) for one in found.get("anyOf", [found])]
    return [str(word) for one in choices for word in one.get("enum", ())]


def _place(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{function.__qualname__}"


def _signature(name: str, function: Callable[..., Any]) -> tuple[Any, Any]:
    parameters = list(inspect.signature(function).parameters.values())
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if not 1 <= len(parameters) <= 2 or any(parameter.kind not in positional for parameter in parameters):
        raise TypeError(f"kind {name!r}: the function takes (job) or (job, spec), not {inspect.signature(function)}")
    scope = vars(sys.modules[function.__module__]) if function.__module__ in sys.modules else {}
    try:
        hints = get_type_hints(function, globalns=scope, include_extras=True)
    except NameError as error:  # types defined inside a function, with postponed annotations
        closure = inspect.getclosurevars(function).nonlocals
        try:
            hints = get_type_hints(function, globalns=scope, localns=dict(closure), include_extras=True)
        except NameError:
            raise TypeError(f"kind {name!r}: {error}; define its types at module level") from error
    input_type = hints.get(parameters[1].name, Any) if len(parameters) == 2 else None
    return input_type, hints.get("return", Any)


def _schema(type_: Any) -> dict[str, Any] | None:
    if type_ is None:
        return None
    try:
        return msgspec.json.schema(type_)
    except TypeError:
        return None


KINDS = Kinds()
kind = KINDS.kind
