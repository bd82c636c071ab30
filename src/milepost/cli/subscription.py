"""`subscription`: who is told of a project's events, and what became of each telling."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import typer
from rich.text import Text

from milepost.cli.connect import Place, connected, read_labels
from milepost.cli.exits import Exit
from milepost.cli.jobs import Label
from milepost.errors import InvalidInput
from milepost.wire.native import NativeDelivery, encode
from milepost.wire.subscription import NativeSubscription

Id = Annotated[str, typer.Argument(metavar="ID", help="the subscription's id", show_default=False)]
On = Annotated[
    list[str] | None,
    typer.Option(metavar="WORD", help="a state entered, a type of event, final or all; repeatable [dim](final)[/dim]"),
]
Kind = Annotated[list[str] | None, typer.Option("--kind", "-k", help="of jobs of this kind; repeatable")]
SubJobs = Annotated[bool | None, typer.Option("--sub-jobs/--roots", help="of sub-jobs too, or of roots alone [dim](roots)[/dim]")]
Description = Annotated[str | None, typer.Option(metavar="TEXT", help="what it is for")]

subscription_app = typer.Typer(help="Tell URLs of a project's events: durable webhooks with a log.")


@connected
def add(
    place: Place,
    to: Annotated[str, typer.Argument(metavar="URL", help="where to POST", show_default=False)],
    on: On = None,
    kind: Kind = None,
    label: Label = None,
    sub_jobs: SubJobs = None,
    description: Description = None,
    after: Annotated[int | None, typer.Option(min=0, metavar="EVENT", help="from behind this event's id, not from now")] = None,
) -> Exit:
    """Tell a URL of what happens from now on. The secret that signs it is shown once, here.

    milepost subscription add https://example.com/hooks --on final --on running --label env=prod
    """
    made = place.client.subscriptions.add(
        to,
        on=on or (),
        kinds=kind or (),
        labels=read_labels(label),
        sub_jobs=bool(sub_jobs),
        description=description or "",
        after=after,
    )
    return _with_secret(place, made)


def _with_secret(place: Place, one: NativeSubscription) -> Exit:
    if place.show.as_json:
        place.show.json(msgspec.to_builtins(one))
    else:
        place.show.line(f"id         {one.id}")
        place.show.line(f"secret     {one.secret}")
    return Exit.DONE


@connected
def list_(place: Place) -> Exit:
    """List the project's subscriptions."""
    found, show = place.client.subscriptions.list(), place.show
    if show.as_json:
        for one in found:
            show.json(msgspec.to_builtins(one))
    else:
        rows = [
            [Text(one.id, style="bold"), Text(_state(one)), Text(one.url), Text(" ".join(one.on)), Text(_about(one))]
            for one in found
        ]
        show.table(("id", "state", "url", "on", "about"), rows)
    return Exit.DONE


def _state(one: NativeSubscription) -> str:
    return one.state if one.reason is None else f"{one.state}: {one.reason}"


def _about(one: NativeSubscription) -> str:
    parts = [*one.kinds, *(f"{key}={value}" for key, value in one.labels.items()), *(["sub-jobs too"] if one.sub_jobs else [])]
    return " ".join([*parts, f"({one.description})"] if one.description else parts)


@connected
def show(place: Place, id: Id) -> Exit:
    """Show a subscription."""
    return _tell(place, place.client.subscriptions.get(id))


def _tell(place: Place, one: NativeSubscription) -> Exit:
    if place.show.as_json:
        place.show.json(msgspec.to_builtins(one))
        return Exit.DONE
    facts = {
        "id": one.id,
        "state": _state(one),
        "url": one.url,
        "on": " ".join(one.on),
        "about": _about(one),
        "looked at": f"event {one.cursor}",
        "deliveries": f"{one.deliveries}, {one.given_up} given up in a row" if one.given_up else str(one.deliveries),
    }
    for name, text in facts.items():
        if text:
            place.show.line(f"{name:<10} {text}")
    return Exit.DONE


@connected
def change(
    place: Place,
    id: Id,
    to: Annotated[str | None, typer.Option(metavar="URL", help="where to POST from now on")] = None,
    on: On = None,
    kind: Kind = None,
    label: Label = None,
    sub_jobs: SubJobs = None,
    description: Description = None,
) -> Exit:
    """Change what is named; the rest stays."""
    given: dict[str, Any] = {
        "url": to,
        "on": on,
        "kinds": kind,
        "labels": None if label is None else read_labels(label),
        "sub_jobs": sub_jobs,
        "description": description,
    }
    changes = {name: value for name, value in given.items() if value is not None}
    if not changes:
        raise InvalidInput("nothing to change was given", path="--on", hint="milepost subscription change --help")
    return _tell(place, place.client.subscriptions.change(id, **changes))


@connected
def pause(place: Place, id: Id) -> Exit:
    """Send nothing until it is resumed; what happens meanwhile is told then."""
    return _tell(place, place.client.subscriptions.pause(id))


@connected
def resume(
    place: Place, id: Id, skip: Annotated[bool, typer.Option("--skip", help="pass over what happened meanwhile")] = False
) -> Exit:
    """Go on where it was paused, by you or because its receiver was gone."""
    return _tell(place, place.client.subscriptions.resume(id, skip=skip))


@connected
def secret(place: Place, id: Id) -> Exit:
    """Make a new secret; the old one signs beside it for a day, so that the receiver can change over."""
    return _with_secret(place, place.client.subscriptions.renew_secret(id))


@connected
def ping(place: Place, id: Id) -> Exit:
    """Send a delivery of no event, to try the receiver."""
    return _tell_deliveries(place, [place.client.subscriptions.ping(id)])


@connected
def remove(place: Place, id: Id) -> Exit:
    """Tell it nothing more; its log goes with it."""
    place.client.subscriptions.remove(id)
    return Exit.DONE


@connected
def log(
    place: Place,
    id: Annotated[str, typer.Argument(metavar="ID", help="a subscription's id, or a job's", show_default=False)],
    state: Annotated[str | None, typer.Option("--state", "-s", help="pending, delivered or given_up")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="most that are shown")] = 100,
) -> Exit:
    """What became of each delivery: those of a subscription, newest first, or those that tell of a job."""
    if id.startswith("sub_"):
        return _tell_deliveries(place, list(place.client.subscriptions.deliveries(id, state=state, limit=limit)))
    found = [one for one in place.client.subscriptions.of_job(id) if state in (None, one.state)]
    return _tell_deliveries(place, found[:limit])


@connected
def redeliver(
    place: Place, ids: Annotated[list[str], typer.Argument(metavar="DELIVERY", help="ids of deliveries", show_default=False)]
) -> Exit:
    """Send deliveries again, each with its own webhook-id."""
    return _tell_deliveries(place, [place.client.subscriptions.redeliver(id) for id in ids])


def _tell_deliveries(place: Place, found: list[NativeDelivery]) -> Exit:
    if place.show.as_json:
        for one in found:
            place.show.json(msgspec.json.decode(encode(one)))
        return Exit.DONE
    rows = [
        [
            Text(one.id, style="bold"),
            Text(one.state),
            Text(one.event),
            Text(one.job_id or ""),
            Text(str(one.attempt)),
            Text(one.created_at[:19] + "Z"),
            Text("" if one.state == "delivered" else one.last_error or "", style="yellow"),
        ]
        for one in found
    ]
    place.show.table(("id", "state", "event", "job", "tries", "made", ""), rows)
    return Exit.DONE


for _name, _command in (
    ("add", add),
    ("list", list_),
    ("show", show),
    ("change", change),
    ("pause", pause),
    ("resume", resume),
    ("secret", secret),
    ("ping", ping),
    ("remove", remove),
    ("log", log),
    ("redeliver", redeliver),
):
    subscription_app.command(_name)(_command)
