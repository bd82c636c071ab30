"""`rehearse`: a fake cloud whose jobs follow a script."""

from __future__ import annotations

from typing import Annotated

import typer

from milepost.cli.connect import end
from milepost.cli.exits import Exit
from milepost.cli.serve import need_server
from milepost.cli.show import Show


def rehearse(
    scenario: Annotated[str, typer.Argument(metavar="SCENARIO", help="TOML file: what jobs there are and what breaks")],
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", "-p", min=0, max=65535, help="port; 0 takes a free one")] = 0,
    virtual: Annotated[
        bool | None,
        typer.Option("--virtual/--real", help="time stands still until it is advanced [dim](as the scenario says)[/dim]"),
    ] = None,
) -> None:
    """Serve scripted jobs on any cloud's wire until Ctrl-C; prints one line, `ready URL`, when it accepts requests.

    Nothing runs and nothing is stored. `POST URL/rehearsal/advance` moves the time, `POST URL/rehearsal/jobs/NAME` commands a
    job, `GET URL/rehearsal/requests` has what each client asked.
    """
    end(Show(), _rehearse, scenario, host, port, virtual)


def _rehearse(path: str, host: str, port: int, virtual: bool | None) -> Exit:
    need_server()
    from milepost.rehearsal.app import RehearsalApp
    from milepost.rehearsal.scenario import read_scenario
    from milepost.wiring import rehearse as run

    run(RehearsalApp(read_scenario(path), virtual=virtual), host=host, port=port)
    return Exit.DONE
