"""Magic variables: `$(key)` in a policy's saveKey, returnBody and callbackBody.

Rules
1. In a returnBody and in a JSON callbackBody a variable becomes a JSON value: text is quoted by the server, numbers are not, and
   what has no value is null.  Where the template has quotes of its own around it, it is text there, and empty without a value.
2. In a form callbackBody a value is percent-encoded; in a saveKey it stands as it is.  What has no value is empty there.
3. `$(x:name)` is a custom variable.  `$(imageInfo.width)` is a part of a variable.
Source: qiniu/developer.qiniu.com kodo magic variables.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import msgspec

from milepost.wire.qiniu.errors import BAD_REQUEST, Refusal

Value = str | int | float | bool | None | dict[str, Any] | list[Any]
Values = Mapping[str, Value]

_VARIABLE = re.compile(r"\$\(([^()]{1,255})\)")
_ESCAPED = re.compile(r"\\.", re.DOTALL)


def names_in(*templates: str | None) -> frozenset[str]:
    """The variables that these templates use, without the parts behind a dot."""
    found = {match[1] for template in templates for match in _VARIABLE.finditer(template or "")}
    return frozenset(name if name.startswith("x:") else name.partition(".")[0] for name in found)


def fill_json(template: str, values: Values) -> bytes:
    """The template as JSON text (rule 1).  Errors: Refusal 400 when it is none."""
    at, inside, parts = 0, False, []
    for match in _VARIABLE.finditer(template):
        before = template[at : match.start()]
        inside ^= _quotes(before) % 2 == 1
        value = look_up(values, match[1])
        shown = msgspec.json.encode(_text(value) if inside else value).decode()
        parts += [before, shown[1:-1] if inside else shown]
        at = match.end()
    body = "".join([*parts, template[at:]]).encode("utf-8", "surrogatepass")
    try:
        msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refusal(BAD_REQUEST, f"the template of the answer is no JSON: {error}") from None
    return body


def _quotes(text: str) -> int:
    """Quotation marks that are not escaped."""
    return _ESCAPED.sub("", text).count('"')


def fill_form(template: str, values: Values) -> bytes:
    """The template as a form (rule 2)."""
    return _fill(template, values, lambda value: quote(_text(value), safe="")).encode("utf-8", "surrogatepass")


def fill_text(template: str, values: Values) -> str:
    """The template as plain text (rule 2)."""
    return _fill(template, values, _text)


def _fill(template: str, values: Values, show: Callable[[Value], str]) -> str:
    return _VARIABLE.sub(lambda match: show(look_up(values, match[1])), template)


def look_up(values: Values, name: str) -> Value:
    """A variable, or a part of one."""
    if name in values or name.startswith("x:"):
        return values.get(name)
    first, *rest = name.split(".")
    found: Any = values.get(first)
    for part in rest:
        found = found.get(part) if isinstance(found, dict) else None
    value: Value = found
    return value


def _text(value: Value) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def time_values(now_us: int) -> dict[str, Value]:
    """The parts of the time, for saveKey only; of UTC."""
    now = datetime.fromtimestamp(now_us // 1_000_000, UTC)
    names = (("year", "%Y"), ("mon", "%m"), ("day", "%d"), ("hour", "%H"), ("min", "%M"), ("sec", "%S"))
    return {name: now.strftime(form) for name, form in names}


def extension(name: str) -> str:
    """`.jpg` of a name; empty when it has none."""
    dot = name.rfind(".")
    return name[dot:] if dot > name.rfind("/") else ""
