"""A job with its sub-jobs as Huawei's wire shows it, on a terminal and as JSON."""

from __future__ import annotations

import io
import json

from rich.console import Console

from milepost.cli.show import job_json, plain_line, state_text, tree
from milepost.wire import JobView
from milepost.wire.huawei import decode, to_view


def seen(status: str, *subs: str) -> JobView:
    entities = [
        {
            "status": one,
            "job_id": f"sub-{n:08d}",
            "job_type": "createVolume",
            "entities": {"volume_id": f"v-{n}"},
            "fail_reason": "full",
        }
        for n, one in enumerate(subs)
    ]
    body = {"status": status, "job_id": "ff80", "job_type": "batchCreateVolume", "entities": {"sub_jobs": entities}}
    return to_view(decode(json.dumps(body).encode()))


def drawn(view: JobView) -> list[str]:
    console = Console(file=io.StringIO(), width=100, force_terminal=False)
    console.print(tree(view))
    return console.file.getvalue().splitlines()


def test_the_live_tree_has_the_sub_jobs_of_the_answer() -> None:
    root, *rows = drawn(seen("RUNNING", "SUCCESS", "FAIL", "RUNNING", "INIT"))
    assert "batchCreateVolume  ff80" in root
    assert "1 of 4 done, 1 failed" in root
    assert ["✓" in rows[0], "✗" in rows[1], "full" in rows[1], "●" in rows[2], "·" in rows[3]] == [True] * 5


def test_the_entities_are_the_result() -> None:
    shown = job_json(seen("SUCCESS", "SUCCESS", "SUCCESS"))
    assert shown["result"] is None  # of a parent: its sub-jobs have them
    assert [sub["result"] for sub in shown["tree"]] == [{"volume_id": "v-0"}, {"volume_id": "v-1"}]
    assert plain_line(seen("SUCCESS", "SUCCESS")) == "ff80  succeeded  1 of 1 done"
    assert plain_line(seen("SUCCESS", "SUCCESS").sub_jobs[0]) == 'sub-00000000  succeeded  {"volume_id": "v-0"}'


def test_the_clouds_own_word_is_shown_where_ours_says_less() -> None:
    assert [state_text(seen(word)).plain for word in ("RUNNING", "INIT", "SUCCESS", "FAIL", "PENDING_PAYMENT", "LISTENING")] == [
        "● running",
        "· ready",
        "✓ succeeded",
        "✗ failed",
        "‖ held (PENDING_PAYMENT)",
        "● running (LISTENING)",
    ]
