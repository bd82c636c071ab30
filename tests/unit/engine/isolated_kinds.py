"""Kinds that run in subprocesses: a module of its own, because the subprocess imports it by name."""

from __future__ import annotations

import os
import time
from pathlib import Path

import milepost
from milepost.process import Limits


class Spec(milepost.Struct):
    path: str = ""
    number: int = 0


@milepost.kind("isolated.double", isolated=True)
def double(job: milepost.IsolatedRunning, spec: Spec) -> int:
    """Twice the number, with a word on the way."""
    job.progress(1, 2, "doubling", unit="steps")
    print("this goes to standard error")
    return spec.number * 2


@milepost.kind("isolated.hang", isolated=True)
def hang(job: milepost.IsolatedRunning, spec: Spec) -> None:
    """Write down who runs, and never end."""
    Path(spec.path).write_text(str(os.getpid()), encoding="utf-8")
    while True:
        time.sleep(1)


@milepost.kind("isolated.fails", isolated=True)
def fails(job: milepost.IsolatedRunning) -> None:
    raise milepost.PermanentError("no_such_volume", "there is no such volume", {"volume": "v1"})


@milepost.kind("isolated.exits", isolated=True, attempts=2)
def exits(job: milepost.IsolatedRunning) -> None:
    os._exit(7)


@milepost.kind("isolated.burns", isolated=True, limits=Limits(cpu_s=1))
def burns(job: milepost.IsolatedRunning) -> None:
    while True:
        pass


ALL = ("isolated.double", "isolated.hang", "isolated.fails", "isolated.exits", "isolated.burns")
