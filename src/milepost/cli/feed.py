"""Events as lines, and `watch` without a job: everything that happens in a project."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import msgspec
from rich.text import Text

from milepost.cli.connect import Place, event_json
from milepost.cli.exits import Exit
from milepost.cli.show import Show
from milepost.errors import InvalidInput
from milepost.job import Event
from milepost.subscription import WORDS, tells, unknown_words
from milepost.wire.native import Missed


def watch_project(place: Place, *, labels: dict[str, str], on: tuple[str, ...], after: int | None) -> Exit:
    """Show each event until Ctrl-C, and then the command that goes on."""
    if unknown := unknown_words(on):
        raise InvalidInput(f"{unknown[0]!r} is no state and no event", path="--on", hint=", ".join(WORDS))
    show, last_id = place.show, after
    try:
        for one in place.client.project_events(labels=labels, after=after, follow=True):
            if isinstance(one, Missed):
                tell_missed(show, one)
                continue
            last_id = one.id
            if tells(on or ("all",), one.type, one.state):
                tell_event(show, one, whole_id=True)
    except KeyboardInterrupt:
        if last_id is not None:
            words = [*(f"--label={key}={value}" for key, value in labels.items()), *(f"--on={word}" for word in on)]
            show.note(f"go on with: {place.client.command('watch', *words, f'--after={last_id}')}")
        return Exit.INTERRUPTED
    return Exit.DONE


def tell_missed(show: Show, missed: Missed) -> None:
    """Events are gone: a line of its own for programs, a note for people."""
    if show.as_json:
        show.json({"type": "missed", **msgspec.to_builtins(missed)})
    else:
        show.note(
            f"events {missed.from_id} to {missed.to_id} went with jobs that have expired: look at the jobs again (milepost list)",
            style="yellow",
        )


def tell_event(show: Show, event: Event, *, whole_id: bool = False, short_id: bool = False) -> None:
    """One line about an event; columns with tabs where nobody looks."""
    if show.as_json:
        show.json(event_json(event))
        return
    at = datetime.fromtimestamp(event.at_us / 1e6).astimezone().strftime("%H:%M:%S.%f")[:-3]
    told = _said(event.data)
    if not show.out.is_terminal:
        show.line(f"{event.id}\t{at}\t{event.job_id}\t{event.type}\t{told}")
        return
    who = f"{event.job_id}  " if whole_id else f"{event.job_id[-8:]}  " if short_id else ""
    show.out.print(Text.assemble((f"{event.id:>6}  {at}  {who}", "dim"), f"{event.type:<17}", (told, "dim")), soft_wrap=True)


def _said(data: bytes | None) -> str:
    """An event's data in one short line."""
    value = json.loads(data) if data else None
    if not isinstance(value, dict):
        return "" if value is None else str(value)
    return "  ".join(f"{key} {_short(item)}" for key, item in value.items() if item not in (None, "", {}, []))


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else text[:119] + "…"
