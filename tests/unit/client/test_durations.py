"""The history of durations: kept between processes, never in the way."""

from __future__ import annotations

from pathlib import Path

import pytest

from milepost.client.durations import KINDS_MAX, Durations, History, history_path


def test_nothing_is_concluded_from_a_few() -> None:
    known = Durations()
    for _ in range(19):
        known.add(100.0)
    assert known.quiet_until_s(1.0) == 1.0
    known.add(100.0)
    assert 40 < known.quiet_until_s(1.0) < 100


def test_early_failures_are_looked_for_and_then_comes_a_quiet_stretch() -> None:
    known = Durations()
    for index in range(1000):
        known.add(2.0 if index % 20 == 0 else 600.0 + index % 100)
    assert known.quiet_until_s(1.0) < 2.1
    assert 500 < known.quiet_until_s(3.0) < 600
    assert known.quiet_until_s(650.0) == 650.0
    assert known.quiet_until_s(10_000.0) == 10_000.0
    assert 600 <= known.quantile_s(0.5) <= 720


def test_what_a_kind_takes_now_counts_more_than_what_it_once_took() -> None:
    known = Durations()
    for _ in range(2000):
        known.add(10.0)
    for _ in range(700):
        known.add(1000.0)
    assert known.quantile_s(0.5) > 900


def test_ten_thousand_durations_later_it_is_still_small() -> None:
    known = Durations()
    for index in range(10_000):
        known.add(1.0 + index % 997)
    assert len(known.counts.weights) < 100
    assert known.counts.newest < 1e9


def test_a_history_outlives_its_process(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "durations.json"
    first = History(path)
    for _ in range(50):
        first.add("http://a", "import", 60.0)
    first.save()
    again = History(path)
    found = again.of("http://a", "import")
    assert found is not None
    assert found.quiet_until_s(1.0) > 30
    assert again.of("http://b", "import") is None
    assert [one.name for one in path.parent.iterdir()] == ["durations.json"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"a": 3}', b"\xff"])
def test_a_broken_history_is_as_good_as_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "durations.json"
    path.write_bytes(content)
    history = History(path)
    assert history.of("p", "k") is None
    history.add("p", "k", 1.0)
    history.save()
    assert History(path).of("p", "k") is not None


def test_a_history_that_cannot_be_written_is_forgotten(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    history = History(tmp_path / "file" / "durations.json")
    history.add("p", "k", 1.0)
    history.save()


def test_the_kinds_used_last_are_kept() -> None:
    history = History()
    for index in range(KINDS_MAX + 10):
        history.add("p", f"k{index}", 1.0)
        history.add("p", "always", 1.0)
    assert history.of("p", "k0") is None
    assert history.of("p", "always") is not None


def test_where_the_history_is() -> None:
    assert history_path({"MILEPOST_HISTORY": "off"}) is None
    assert history_path({"MILEPOST_HISTORY": "mine.json"}) == Path("mine.json")
    assert history_path({"XDG_CACHE_HOME": "cache"}) == Path("cache/milepost/durations.json")
