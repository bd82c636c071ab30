"""For tests of your own kinds and clients: a real server in the test, a clock you move, points to stop at, and faults.

    from milepost.testing import ManualClock, Signals, Faults, serving

Nothing here needs a pytest plugin.  `serving` needs the extra `server`.
"""

from __future__ import annotations

from milepost.testing.clock import ManualClock
from milepost.testing.faults import Faults, FaultyStore
from milepost.testing.server import Served, serving, serving_in_thread
from milepost.testing.signals import Signals

__all__ = ["Faults", "FaultyStore", "ManualClock", "Served", "Signals", "serving", "serving_in_thread"]
