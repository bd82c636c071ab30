"""`serve`: the server in this process."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from milepost.cli.connect import end
from milepost.cli.exits import Exit
from milepost.cli.show import Show
from milepost.errors import InvalidInput


def serve(
    modules: Annotated[
        list[str] | None, typer.Argument(metavar="MODULE", help="modules or .py files with your own kinds", show_default=False)
    ] = None,
    host: Annotated[str | None, typer.Option(envvar="MILEPOST_HOST", help="address to listen on [dim](127.0.0.1)[/dim]")] = None,
    port: Annotated[
        int | None,
        typer.Option("--port", "-p", envvar="MILEPOST_PORT", min=0, max=65535, help="port; 0 takes a free one [dim](8080)[/dim]"),
    ] = None,
    data: Annotated[
        str | None, typer.Option(envvar="MILEPOST_DATA", help="folder that keeps everything [dim](milepost-data)[/dim]")
    ] = None,
    auth: Annotated[
        str | None, typer.Option(envvar="MILEPOST_AUTH", help="none (loopback only) or required [dim](none)[/dim]")
    ] = None,
    log_level: Annotated[
        str | None, typer.Option(envvar="MILEPOST_LOG_LEVEL", help="debug, info, warning or error [dim](info)[/dim]")
    ] = None,
) -> None:
    """Serve and run jobs until Ctrl-C; prints one line, `ready URL`, when it accepts requests.

    Every other setting is a MILEPOST_… variable: see the reference of settings. A stop lets running jobs end for a while and
    gives the rest back to their queues; nothing that was accepted is lost, not even by kill -9.
    """
    given = {"host": host, "port": port, "data": data, "auth": auth, "log_level": log_level}
    end(Show(), _serve, modules or [], given)


def _serve(modules: list[str], given: dict[str, Any]) -> Exit:
    need_server()
    from milepost.settings import Settings
    from milepost.wiring import serve as run

    run(Settings.read(**given), modules)
    return Exit.DONE


def need_server() -> None:
    """Errors: InvalidInput when the server's libraries are not installed."""
    try:
        import argon2  # noqa: F401
        import granian  # noqa: F401
        import starlette  # noqa: F401
        import structlog  # noqa: F401
        import uvloop  # noqa: F401
    except ModuleNotFoundError as error:
        raise InvalidInput(
            f"the server needs {error.name}, which is not installed", hint="pip install 'milepost[server]'"
        ) from None
