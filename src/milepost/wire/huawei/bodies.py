"""What the requests of Huawei Cloud's services have in common: typed bodies, and what a submit comes to.  Pure.

Rules
1. A key that we do not know is ignored, as the services do; null counts as absent, because Go clients send it.
2. A wrong body is refused with the service's code and the name of the field, before anything is accepted.
3. Truth values come as booleans and as text: the SDKs' own models disagree.

Source: huaweicloudsdkecs and huaweicloudsdkevs models; chnsz/golangsdk openstack/ecs/v1/cloudservers and
openstack/evs/v2/cloudvolumes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar
from urllib.parse import parse_qsl

import msgspec

from milepost.wire.huawei.errors import Refusal

T = TypeVar("T")
Flag = bool | int | str | None
UUID = re.compile(r"[0-9a-fA-F]{8}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{12}").fullmatch
NAME_CHARS_MAX = 255
PAIRS_MAX = 1000  # parameters of one URL


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """What a submit asks for.  `input` is the kind's; `order`: yearly or monthly, so it is answered with an order id;
    `pay`: the order is paid at once, so that the job need not wait.
    """

    kind: str
    input: dict[str, Any]
    order: bool = False
    pay: bool = False
    dry_run: bool = False

    @property
    def held(self) -> bool:
        """Whether the job waits for its order to be paid."""
        return self.order and not self.pay


class Codes(msgspec.Struct, frozen=True):
    """The codes of one kind of body: when a field is wrong by its name, when it is something else, when it is no JSON."""

    other: str
    syntax: str
    fields: Mapping[str, str] = {}

    def of(self, path: str) -> str:
        """The code for the field at the end of this path."""
        name = path.partition("[")[0].rpartition(".")[2] if path.endswith("]") else path.rpartition(".")[2]
        return self.fields.get(name, self.other)


def refuse(code: str, message: str, *, status: int = 400) -> NoReturn:
    """Errors: Refusal."""
    raise Refusal(status, code, message)


def read_body(decode: Callable[[bytes], T], body: bytes, codes: Codes) -> T:
    """The typed body.  Errors: Refusal with the field's code and its path."""
    try:
        return decode(body)
    except msgspec.ValidationError as error:
        text, _, path = str(error).partition(" - at `$")  # nothing of the body's own is in the message
        where = path.removesuffix("`").removeprefix(".")
        refuse(codes.of(where), f"{where}: {text}" if where else text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        refuse(codes.syntax, f"The request body is not JSON: {error}" if body else "The request body is empty.")
    except RecursionError:
        refuse(codes.syntax, "The request body is nested too deeply.")


def is_true(value: Flag, code: str, field: str) -> bool:
    """Errors: Refusal when it is neither true nor false."""
    if value is None or isinstance(value, bool):
        return bool(value)
    text = str(value).strip().lower()
    if text in ("true", "1", "yes"):
        return True
    if text in ("false", "0", "no", ""):
        return False
    refuse(code, f"{field} must be true or false.")


def check_text(value: str | None, most: int, code: str, field: str) -> str:
    """Errors: Refusal when it is too long, or has characters that no name has."""
    text = value or ""
    if len(text) > most:
        refuse(code, f"{field} has {len(text)} characters; at most {most} are allowed.")
    if not text.isprintable() and any(ord(char) < 32 and char not in "\t\n\r" for char in text):
        refuse(code, f"{field} has control characters.")
    return text


def check_words(pairs: Mapping[str, Any] | None, code: str, field: str, *, most: int = 100) -> dict[str, str]:
    """The pairs with text as values.  Errors: Refusal for other values, for too many, and for too long ones."""
    found: dict[str, str] = {}
    for key, value in (pairs or {}).items():
        if value is None:
            continue
        if isinstance(value, bool):
            value = "true" if value else "false"
        if not isinstance(value, str | int):
            refuse(code, f"{field}.{key[:40]} must be text.")
        if len(key) > NAME_CHARS_MAX or len(str(value)) > NAME_CHARS_MAX:
            refuse(code, f"{field}: key and value have at most {NAME_CHARS_MAX} characters.")
        found[key] = str(value)
    if len(found) > most:
        refuse(code, f"{field} has {len(found)} pairs; at most {most} are allowed.")
    return found


def check_whole(value: float | None, code: str, field: str, low: int, high: int) -> int:
    """A whole number, decimals cut.  Errors: Refusal when it is missing or out of its range."""
    if value is None:
        refuse(code, f"{field} is required.")
    if not low <= value < high + 1:
        refuse(code, f"{field} is {value:g}; it goes from {low} to {high}.")
    return int(value)


def is_prepaid(mode: int | str | None) -> bool:
    """Whether a charging mode means yearly or monthly: the word, or the number that the servers' metadata has."""
    return str(mode).lower() in ("prepaid", "1")


def read_query(raw: str) -> dict[str, str]:
    """The parameters of a URL, the last one of each name."""
    try:
        return dict(parse_qsl(raw, keep_blank_values=True, max_num_fields=PAIRS_MAX))
    except ValueError:
        return {}


def check_number(text: str | None, name: str, default: int, low: int, high: int) -> int:
    """A whole number of ECS's query.  Errors: Refusal."""
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 12 and low <= int(text) <= high):
        refuse("Ecs.0005", f"{name} is {text[:40]!r}; it goes from {low} to {high}.")
    return int(text)
