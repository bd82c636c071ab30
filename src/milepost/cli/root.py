"""The command line put together."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from milepost.cli import buckets, catalog, doctor, identity, jobs, objects, rehearse, serve, waiting, workflows
from milepost.cli.bench import bench
from milepost.cli.credential import credential_app
from milepost.cli.demo import demo
from milepost.cli.exits import Exit
from milepost.cli.proxy import proxy
from milepost.cli.subscription import subscription_app
from milepost.cli.track import track_app

app = typer.Typer(
    name="milepost",
    help="Durable jobs for slow cloud work, and one client for every cloud's jobs.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,  # they may hold secrets
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: " + ", ".join(f"{int(code)} {code.name.lower().replace('_', ' ')}" for code in Exit) + ".",
)

JOBS, SERVER, TRY = "Jobs", "A server", "Try and measure"


def _version(asked: bool) -> None:
    if asked:
        import milepost

        sys.stdout.write(f"milepost {milepost.__version__}\n")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")] = False,
) -> None:
    """Durable jobs for slow cloud work, and one client for every cloud's jobs."""


for name, command in (
    ("submit", jobs.submit),
    ("get", jobs.get),
    ("list", jobs.list_),
    ("wait", waiting.wait),
    ("watch", waiting.watch),
    ("events", jobs.events),
    ("cancel", jobs.cancel),
    ("retry", jobs.retry),
    ("release", jobs.release),
):
    app.command(name, rich_help_panel=JOBS)(command)
app.command("kinds", rich_help_panel=SERVER)(catalog.kinds)
app.add_typer(catalog.queues_app, name="queues", rich_help_panel=SERVER)
app.command("serve", rich_help_panel=SERVER)(serve.serve)
app.add_typer(track_app, name="track", rich_help_panel=JOBS)
app.command("proxy", rich_help_panel=JOBS)(proxy)
app.add_typer(credential_app, name="credential", rich_help_panel=JOBS)
app.add_typer(subscription_app, name="subscription", rich_help_panel=JOBS)
app.add_typer(identity.project_app, name="project", rich_help_panel=SERVER)
app.add_typer(identity.user_app, name="user", rich_help_panel=SERVER)
app.add_typer(identity.key_app, name="key", rich_help_panel=SERVER)
app.add_typer(buckets.bucket_app, name="bucket", rich_help_panel=SERVER)
app.add_typer(objects.object_app, name="object", rich_help_panel=SERVER)
app.add_typer(workflows.app, name="workflow", rich_help_panel=SERVER)
app.command("doctor", rich_help_panel=TRY)(doctor.doctor)
app.command("demo", rich_help_panel=TRY)(demo)
app.command("rehearse", rich_help_panel=TRY)(rehearse.rehearse)
app.command("bench", rich_help_panel=TRY, context_settings={"ignore_unknown_options": True})(bench)


def run() -> None:
    """The program."""
    app(prog_name="milepost")
