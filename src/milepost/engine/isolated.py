"""Runs a kind's function in a subprocess of its own, with limits, that can be killed at once.

The parent side is `call`; the child side is `main` (`python -m milepost.engine.isolated`).  The child reads one JSON request from
its standard input, imports the function's module, and writes JSON lines to what was its standard output: progress, then one
result or error.  What the function prints goes to standard error, so that it cannot disturb them.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from milepost.engine.context import Cancel, JobFacts, Running, Snooze
from milepost.engine.kinds import Kind
from milepost.errors import MilepostError, PermanentError, RetryableError
from milepost.job import Job
from milepost.process import ENV, Ended, run_process

OUTPUT_BYTES_MAX = 32 << 20


class Request(msgspec.Struct):
    """What the child is told."""

    module: str
    function: str
    kind: str
    path: list[str]
    job: Job
    scratch: str


class Message(msgspec.Struct, omit_defaults=True):
    """One line from the child."""

    progress: tuple[int, int | None, str, str] | None = None  # done, total, note, unit
    result: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    snooze: tuple[float, str] | None = None
    cancel: str | None = None
    error: tuple[str, str, dict[str, Any] | None, bool, float | None] | None = None  # code, message, details, retryable, delay


_decode = msgspec.json.Decoder(Message).decode
_encode = msgspec.json.Encoder().encode


class IsolatedRunning(JobFacts):
    """What an isolated function is given: the job, its scratch folder, and a way to say how far it is."""

    def __init__(self, request: Request, out: int) -> None:
        self.job, self._scratch, self._out = request.job, Path(request.scratch), out

    @property
    def scratch(self) -> Path:
        """A folder of this job's own, the same in each attempt; removed when the job is final."""
        self._scratch.mkdir(parents=True, exist_ok=True)
        return self._scratch

    def progress(self, done: int, total: int | None = None, note: str = "", *, unit: str = "") -> None:
        """Say how far it is; at most one write a second is made."""
        _send(self._out, Message(progress=(done, total, note, unit)))

    def run_sub_jobs(self, _sub_jobs: Any) -> NoReturn:
        """There are none here.  Errors: PermanentError `not_supported`."""
        raise PermanentError("not_supported", "an isolated kind has no sub-jobs; ask for them in an async parent")


async def call(kind: Kind, running: Running) -> Any:
    """The function's result as Raw JSON.  Errors: what the function raised; RetryableError when a limit or signal ended it."""
    function = kind.function
    request = Request(function.__module__, function.__qualname__, kind.name, sys.path, running.job, str(running.scratch))
    kept = b""
    last: Message | None = None

    async def on_output(chunk: bytes) -> None:
        nonlocal kept, last
        *lines, kept = (kept + chunk).split(b"\n")
        if len(kept) > OUTPUT_BYTES_MAX:
            raise PermanentError("result_too_large", "the isolated function sent more than can be a result")
        for line in lines:
            message = _decode(line)
            if message.progress is None:
                last = message
            else:
                done, total, note, unit = message.progress
                await running.progress(done, total, note, unit=unit)

    environment = dict(ENV) | {"PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    argv = [sys.executable, "-m", "milepost.engine.isolated"]
    ended = await run_process(argv, limits=kind.limits, stdin=_encode(request), env=environment, on_output=on_output)
    return _read(last, ended)


def _read(message: Message | None, ended: Ended) -> Any:
    if message is None:
        code = "limit_exceeded" if ended.reason in ("cpu_time", "file_size", "wall_time") else "worker_process_died"
        raise RetryableError(code, f"the isolated process ended without a result: {ended.describe()}")
    if message.result is not msgspec.UNSET:
        return message.result
    if message.snooze is not None:
        raise Snooze(*message.snooze)
    if message.cancel is not None:
        raise Cancel(message.cancel)
    assert message.error is not None
    code, text, details, retryable, delay_s = message.error
    if retryable:
        raise RetryableError(code, text, details, delay_s=delay_s)
    raise PermanentError(code, text, details)


# --- the child's side --------------------------------------------------------------------------------------------------


def _send(out: int, message: Message) -> None:
    data = _encode(message) + b"\n"
    while data:
        data = data[os.write(out, data) :]


def main() -> None:
    """Run one request and end."""
    out = os.dup(1)
    os.dup2(2, 1)
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=Request)
    sys.path[:] = request.path
    _send(out, _run(request, out))


def _run(request: Request, out: int) -> Message:
    try:
        target: Any = importlib.import_module(request.module)
        for part in request.function.split("."):
            target = getattr(target, part)
        from milepost.engine.kinds import KINDS

        kind = KINDS.get(request.kind)
        spec = kind.read_input(request.job.input or b"{}")
        context = IsolatedRunning(request, out)
        value = target(context) if kind.input_type is None else target(context, spec)
        if isinstance(value, (Snooze, Cancel)):
            raise value
        return Message(result=msgspec.Raw(_encode(value)))
    except Snooze as snooze:
        return Message(snooze=(snooze.delay_s, snooze.note))
    except Cancel as cancel:
        return Message(cancel=cancel.reason)
    except PermanentError as error:
        return Message(error=(error.code, error.message, error.details, False, None))
    except RetryableError as error:
        return Message(error=(error.code, error.message, error.details, True, error.delay_s))
    except MilepostError as error:
        return Message(error=(error.code, error.message, None, error.retryable, None))
    except MemoryError:
        return Message(error=("out_of_memory", "the isolated function needed more memory than it may use", None, True, None))
    except Exception as error:
        return Message(error=("exception", f"{type(error).__name__}: {error}"[:2000], None, True, None))


if __name__ == "__main__":
    main()
