"""What a figure is: rows with goals, and a function that measures them all once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from bench.room import Room


class Unmeasurable(Exception):
    """It cannot be measured here, and why; the run goes on without it."""


# What such a sketch of SQLite alone did on the machine on which the goals of the rates were set, jobs a second.
SKETCH_PER_S = 14_700


class Row(NamedTuple):
    """One number; without a goal it is shown for what it is.  `beside`: the row of the sketch that ran in the same minutes."""

    name: str
    unit: str
    goal: float | None = None
    better: Literal["more", "less"] = "more"
    beside: str | None = None

    def ratio(self, value: float) -> float | None:
        """How much of the goal was reached: 1 or more is all of it."""
        if self.goal is None or not value:
            return None
        return value / self.goal if self.better == "more" else self.goal / value


class Figure(NamedTuple):
    """`measure` gives a value for each row; it is called once a round, at most `rounds_max` times a run."""

    name: str
    about: str
    rows: tuple[Row, ...]
    measure: Callable[[Room], Mapping[str, float]]
    rounds_max: int = 100
