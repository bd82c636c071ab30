"""The tree of errors is the one that its module prints."""

from __future__ import annotations

import re
from collections.abc import Iterator

from milepost import errors
from milepost.errors import InvalidInput, LimitExceeded, MilepostError, Throttled, WaitTimeout


def below(root: type[MilepostError]) -> Iterator[type[MilepostError]]:
    yield root
    for child in root.__subclasses__():
        yield from below(child)


def printed() -> dict[str, str | None]:
    """Each class of the printed tree, and the one above it."""
    above: dict[str, str | None] = {"MilepostError": None}
    line_of: dict[int, str] = {0: "MilepostError"}
    for line in (errors.__doc__ or "").splitlines():
        if found := re.match(r"^([│├└─ ]+)(\w+)", line):
            depth = len(found.group(1)) // 4
            above[found.group(2)] = line_of[depth - 1]
            line_of[depth] = found.group(2)
    return above


def test_the_printed_tree_is_the_tree() -> None:
    ours = [error for error in below(MilepostError) if error.__module__ == "milepost.errors"]
    bases = {MilepostError: None} | {error: error.__bases__[0].__name__ for error in ours if error is not MilepostError}
    assert printed() == {error.__name__: above for error, above in bases.items()}


def test_every_error_has_a_code_of_its_own() -> None:
    codes = [error.code for error in below(MilepostError) if error.__module__ == "milepost.errors"]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"[a-z_]+", code) for code in codes)


def test_a_callers_mistake_is_never_retryable() -> None:
    assert not [error for error in below(errors.CallerError) if error.retryable]
    assert all(error.retryable for error in below(errors.Unavailable))


def test_an_error_says_what_to_do_next() -> None:
    error = MilepostError("the disk is full", hint="make room", job_id="j", seen=3)
    assert str(error) == "the disk is full (make room)"
    assert (error.job_id, error.fields) == ("j", {"seen": 3})


def test_a_wait_that_ended_is_a_timeout_and_no_failure_of_the_job() -> None:
    error = WaitTimeout("j", state="running", waited_s=2.5)
    assert isinstance(error, TimeoutError)
    assert not isinstance(error, errors.JobError)
    assert (error.job_id, error.state, error.elapsed_s, error.hint) == ("j", "running", 2.5, "milepost wait j")


def test_fields_that_have_names() -> None:
    limit = LimitExceeded("too many", limit="labels_max", allowed=3, seen=4)
    assert (limit.limit, limit.allowed, limit.seen, limit.fields["limit"]) == ("labels_max", 3, 4, "labels_max")
    assert Throttled("slow down", retry_after_s=2).retry_after_s == 2
    assert InvalidInput("no", path="$.x").path == "$.x"
