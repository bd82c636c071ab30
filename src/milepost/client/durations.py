"""How long jobs of a kind usually take: learnt from those that were seen to end, kept in a small file of this user's.

Theory: durations of one kind spread over decades, so they are counted in buckets that grow by a tenth; that gives any quantile
to within 5 % in some hundred bytes.  Newer ones weigh more: a kind whose work changed is learnt again within some hundred jobs.

Failure modes: a file that cannot be read or written is as good as none; two processes that write at once lose some counts of
one of them, never the file.
"""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import msgspec

GROWTH = math.log(1.1)  # of a bucket's edges
FADE = 1.004  # each new duration weighs so much more than the one before: the last 250 are most of what is known
HEAVY = 1e6  # weights are scaled down when they have grown so large
ENOUGH = 20.0  # durations, before anything is concluded from them
RARE = 0.001  # a chance this small that a job ends meanwhile makes a stretch a quiet one
KINDS_MAX = 500  # in the file, those used last


class Counts(msgspec.Struct):
    """What is stored of one kind: weights by logarithmic bucket."""

    weights: dict[int, float] = {}
    seen: int = 0
    newest: float = 1.0  # weight of the last one


class Durations:
    """The durations of one kind's jobs."""

    __slots__ = ("_quiet", "counts")

    def __init__(self, counts: Counts | None = None) -> None:
        self.counts = counts or Counts()
        self._quiet: dict[int, float] = {}  # by bucket, as far as it was asked for

    def add(self, duration_s: float) -> None:
        """One more job ended after so long."""
        counts, bucket = self.counts, _bucket(duration_s)
        counts.newest *= FADE
        counts.weights[bucket] = counts.weights.get(bucket, 0.0) + counts.newest
        counts.seen += 1
        self._quiet.clear()
        if counts.newest > HEAVY:
            counts.weights = {one: weight / HEAVY for one, weight in counts.weights.items() if weight / HEAVY > 1e-9}
            counts.newest /= HEAVY

    def quantile_s(self, share: float) -> float:
        """The duration that this share of the jobs does not exceed.  Shape: share in [0, 1]; 0 when nothing is known."""
        weights = self.counts.weights
        goal, sum_, bucket = share * sum(weights.values()), 0.0, 0
        for bucket in sorted(weights):
            sum_ += weights[bucket]
            if sum_ >= goal:
                break
        return math.exp(bucket * GROWTH) if weights else 0.0

    def quiet_until_s(self, age_s: float) -> float:
        """Hardly a job that has come to this age ends before the age that is returned; `age_s` itself when that is not known.

        Of n durations the shortest says little about what 1 in 1,000 does, so a margin is kept that shrinks as they become more.
        """
        if self.counts.seen < ENOUGH:
            return age_s
        now = _bucket(age_s)
        if now not in self._quiet:
            self._quiet[now] = self._quiet_from(now)
        return max(age_s, self._quiet[now])

    def _quiet_from(self, now: int) -> float:
        weights, seen = self.counts.weights, self.counts.seen
        ahead = sorted(bucket for bucket in weights if bucket >= now)
        left = sum(weights[bucket] for bucket in ahead)
        chance = 0.0
        for bucket in ahead:
            chance += weights[bucket]
            if chance > RARE * left:
                margin = math.exp(-GROWTH / 2) * seen / (seen + ENOUGH)
                return math.exp(bucket * GROWTH) * margin
        return 0.0  # older than any that was seen


def _bucket(duration_s: float) -> int:
    return round(math.log(max(duration_s, 0.001)) / GROWTH)


class History:
    """The durations of every kind this user waited for, by endpoint.  `path` None keeps them in memory only."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._loaded: dict[str, Durations] | None = None
        self._changed = False

    @property
    def _kinds(self) -> dict[str, Durations]:
        """Read when it is first needed: most clients never wait."""
        if self._loaded is None:
            self._loaded = _read(self._path)
        return self._loaded

    def of(self, place: str, kind: str) -> Durations | None:
        """What is known of this kind at this endpoint."""
        return self._kinds.get(_name(place, kind))

    def add(self, place: str, kind: str, duration_s: float) -> None:
        """A job of this kind was seen to end after so long."""
        name = _name(place, kind)
        known = self._kinds.pop(name, None) or Durations()
        known.add(duration_s)
        self._kinds[name] = known  # the one used last is the last
        while len(self._kinds) > KINDS_MAX:
            del self._kinds[next(iter(self._kinds))]
        self._changed = True

    def save(self) -> None:
        """Write what was learnt; what cannot be written is forgotten."""
        if self._path is None or not self._changed:
            return
        self._changed = False
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=".durations-")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(msgspec.json.encode({name: known.counts for name, known in self._kinds.items()}))
                Path(name).replace(self._path)
            except OSError:
                Path(name).unlink(missing_ok=True)
                raise


def history_path(environ: Mapping[str, str]) -> Path | None:
    """Where this user's history is: `MILEPOST_HISTORY`, else under the cache folder; None when that variable is `off`."""
    named = environ.get("MILEPOST_HISTORY")
    if named:
        return None if named == "off" else Path(named)
    cache = environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "milepost" / "durations.json"


def _name(place: str, kind: str) -> str:
    return f"{kind}@{place}"


def _read(path: Path | None) -> dict[str, Durations]:
    if path is None:
        return {}
    try:
        stored = msgspec.json.decode(path.read_bytes(), type=dict[str, Counts])
    except (OSError, msgspec.DecodeError):
        return {}
    return {name: Durations(counts) for name, counts in stored.items()}


__all__ = ["Durations", "History", "history_path"]
