"""`credential`: what a server follows jobs in other clouds with.  A secret is never an argument: others see those."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.text import Text

from milepost.cli.connect import Place, connected
from milepost.cli.exits import Exit
from milepost.cli.track import run
from milepost.client import signing, tracked
from milepost.client.identity import Credentials, from_clouds_yaml, from_environment
from milepost.errors import InvalidInput
from milepost.wire.tracking import CredentialRequest

Name = Annotated[str, typer.Argument(metavar="NAME", help="the credential's name", show_default=False)]

credential_app = typer.Typer(help="Credentials that a server keeps, sealed, to follow jobs in other clouds with.")


@connected
def add(
    place: Place,
    name: Name,
    at: Annotated[str, typer.Option("--at", metavar="URL", help="the service's endpoint: the only place that it is sent to")],
    from_env: Annotated[
        bool, typer.Option("--from-env", help="take OS_…, HUAWEICLOUD_SDK_… or QINIU_… from the environment")
    ] = False,
    from_cloud: Annotated[str | None, typer.Option(metavar="ENTRY", help="take an entry of clouds.yaml")] = None,
    access: Annotated[str | None, typer.Option(metavar="AK", help="access key; its secret is asked for")] = None,
    secret_file: Annotated[
        str | None, typer.Option(metavar="FILE", help="file with the token, or the access key's secret; - is stdin")
    ] = None,
) -> Exit:
    """Keep a credential; one of the same name is replaced. Without options a token is asked for.

    milepost credential add mine --at https://ecs.region.example --from-env
    """
    if from_env:
        request = _from_environment(at)
    elif from_cloud is not None:
        request = _of_credentials(at, from_clouds_yaml(from_cloud)[0])
    elif access is not None:
        request = CredentialRequest(type="keys", endpoint=at, access=access, secret=_read_secret(secret_file, "secret"))
    else:
        request = CredentialRequest(type="token", endpoint=at, token=_read_secret(secret_file, "token"))
    kept = run(place, tracked.put_credential(place.client._session, name, request))
    if place.show.as_json:
        place.show.json(msgspec.to_builtins(kept))
    else:
        place.show.line(f"{kept.name}: {kept.who}, for {kept.endpoint}")
    return Exit.DONE


def _read_secret(file: str | None, what: str) -> str:
    """Errors: InvalidInput."""
    try:
        if file is None:
            text = str(typer.prompt(what, hide_input=True, err=True)) if sys.stdin.isatty() else sys.stdin.read()
        else:
            text = sys.stdin.read() if file == "-" else Path(file).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"the {what} cannot be read: {error}", path="--secret-file") from error
    if not text.strip():
        raise InvalidInput(f"the {what} is empty", path="--secret-file")
    return text.strip()


def _from_environment(at: str) -> CredentialRequest:
    """Errors: InvalidInput when there is none."""
    pair = signing.from_environment(os.environ)
    if pair is not None:
        return CredentialRequest(
            type="keys", endpoint=at, access=pair.access, secret=pair.secret, security_token=pair.security_token
        )
    keys = signing.qiniu_from_environment(os.environ)
    if keys is not None:
        return CredentialRequest(type="keys", endpoint=at, access=keys.access, secret=keys.secret)
    credentials = from_environment(os.environ)
    if credentials is None:
        raise InvalidInput("the environment has no OS_…, HUAWEICLOUD_SDK_… and no QINIU_… credentials", path="--from-env")
    return _of_credentials(at, credentials)


def _of_credentials(at: str, credentials: Credentials) -> CredentialRequest:
    fields = {name: getattr(credentials, name) for name in credentials.__struct_fields__}
    if fields.pop("token", None) is not None and not fields.get("password"):
        raise InvalidInput(
            "these credentials are a token, which ends soon: keep a password or an application credential", path="NAME"
        )
    return CredentialRequest(type="keystone", endpoint=at, **fields)


@connected
def list_(place: Place) -> Exit:
    """List the project's credentials: what they are for, not what they are."""
    found, show = run(place, tracked.list_credentials(place.client._session)), place.show
    if show.as_json:
        for one in found:
            show.json(msgspec.to_builtins(one))
    else:
        rows = [
            [Text(one.name, style="bold"), Text(one.type), Text(one.who), Text(one.endpoint), Text(one.key), Text(one.updated_at)]
            for one in found
        ]
        show.table(("name", "type", "who", "for", "sealed with", "since"), rows)
    return Exit.DONE


@connected
def remove(place: Place, name: Name) -> Exit:
    """Delete a credential. Jobs tracked with it say so, and go on once there is one of that name again."""
    run(place, tracked.delete_credential(place.client._session, name))
    return Exit.DONE


credential_app.command("add")(add)
credential_app.command("list")(list_)
credential_app.command("remove")(remove)
