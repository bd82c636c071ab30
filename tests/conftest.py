"""What holds for the whole suite.

In CI a test that is skipped because a program is missing fails: there, everything the tests need is installed.
A suite that is told to end (`timeout 300 pytest …`) ends as with Ctrl-C: what its fixtures started, they stop.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Generator
from typing import Any

import hypothesis
import pytest
import structlog

os.environ.setdefault("MILEPOST_HISTORY", "off")  # no test learns from, or writes into, the history of who runs it

# The words of a skip that is about the machine and not about the test: "needs qemu-img", "could not import 'x'", …
MISSING = re.compile(
    r"\b(needs|requires) (?!root|linux)|\bmissing\b|not (installed|found|available)|could not import|no module named",
    re.IGNORECASE,
)


def pytest_configure() -> None:
    """SIGTERM would end the process at once, and leave servers and machines running.

    What is logged is shown plainly: the default form of a traceback, with all variables in frames, takes a second of the loop.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    processors = [structlog.processors.add_log_level, structlog.processors.format_exc_info, structlog.dev.ConsoleRenderer()]
    structlog.configure(processors=processors)
    # How long an example takes says something about the machine only.  CI asks the same examples each time; whoever develops
    # meets new ones.
    hypothesis.settings.register_profile(
        "milepost",
        deadline=None,
        derandomize="CI" in os.environ,
        print_blob=True,
        suppress_health_check=[hypothesis.HealthCheck.too_slow],
    )
    hypothesis.settings.load_profile("milepost")


def _refuse_skip(report: Any) -> None:
    if report.outcome != "skipped" or hasattr(report, "wasxfail") or os.environ.get("CI") != "true":
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if MISSING.search(reason):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI, where nothing may be missing: {reason.removeprefix('Skipped: ')}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    report = yield
    _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, Any]:
    report = yield
    _refuse_skip(report)
    return report
