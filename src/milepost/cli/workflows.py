"""`workflow`: templates of media commands, written straight into a server's data folder.  Works beside a running server."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from milepost.cli.connect import Json
from milepost.cli.identity import Data, _fields, _rows, _run

app = typer.Typer(help="Templates of media commands, by their workflowTemplateID.", no_args_is_help=True)

Id = Annotated[str, typer.Argument(metavar="ID", help="the workflowTemplateID")]
Fops = Annotated[
    str,
    typer.Argument(
        metavar="FOPS",
        help="commands with ; between them; saveas/BUCKET:KEY may be in the clear and use $(key), $(name), $(ext), $(bucket)",
    ),
]
OfProject = Annotated[str, typer.Option("--project", envvar="MILEPOST_PROJECT", help="whose [dim](default)[/dim]")]


@app.command("add")
def add(id: Id, fops: Fops, project: OfProject = "default", data: Data = None, json: Json = False) -> None:
    """Store a template, or replace the one of this id."""

    async def act(identities: Any, store: Any) -> dict[str, Any]:
        from milepost.clock import SystemClock
        from milepost.server.facades.qiniu.workflows import put_workflow

        owner = (await _owner(identities, store, project)).id
        made = await put_workflow(store, owner, id, fops, now_us=SystemClock().now_us())
        return {"id": made.id, "project": owner, "fops": ";".join(made.fops)}

    _run(json, data, act, _fields)


@app.command("list")
def list_(project: OfProject = "default", data: Data = None, json: Json = False) -> None:
    """List a project's templates."""

    async def act(identities: Any, store: Any) -> list[dict[str, Any]]:
        from milepost.server.facades.qiniu.workflows import list_workflows

        found = await list_workflows(store, (await _owner(identities, store, project)).id)
        return [{"id": one.id, "fops": ";".join(one.fops)} for one in found]

    _run(json, data, act, lambda show, found: _rows(show, found, "no workflows; milepost workflow add ID FOPS makes one"))


@app.command("remove")
def remove(id: Id, project: OfProject = "default", data: Data = None, json: Json = False) -> None:
    """Forget a template; what it began goes on."""

    async def act(identities: Any, store: Any) -> dict[str, Any]:
        from milepost.server.facades.qiniu.workflows import remove_workflow

        owner = (await _owner(identities, store, project)).id
        await remove_workflow(store, owner, id)
        return {"id": id, "project": owner, "removed": True}

    _run(json, data, act, _fields)


async def _owner(identities: Any, store: Any, project: str) -> Any:
    """The project; `default` is made when it is first named.  Errors: NotFound."""
    if project == "default":
        return await identities.ensure_project(project)
    return await store.get_project(project)
