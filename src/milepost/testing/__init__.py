"""For tests of your own kinds and clients: a real server in the test, a clock you move, points to stop at, and faults; and a fake
cloud with scripted jobs.

    from milepost.testing import ManualClock, Signals, Faults, rehearsing, serving

Nothing here needs a pytest plugin.  `serving` and `rehearsing` need the extra `server`.
"""

from __future__ import annotations

from milepost.testing.clock import ManualClock
from milepost.testing.faults import Faults, FaultyStore
from milepost.testing.rehearsal import Rehearsed, rehearsing, rehearsing_in_thread
from milepost.testing.server import Served, serving, serving_in_thread
from milepost.testing.signals import Signals

__all__ = [
    "Faults",
    "FaultyStore",
    "ManualClock",
    "Rehearsed",
    "Served",
    "Signals",
    "rehearsing",
    "rehearsing_in_thread",
    "serving",
    "serving_in_thread",
]
