"""Write the generated parts of docs/reference again, from the code: what `make docs` runs.

A generated part stands between `<!-- generated: NAME -->` and `<!-- end -->`; the rest of each file is written by hand.
`tests/test_docs.py` holds both: the generated parts are up to date, the hand-written ones leave nothing out.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import math
import re
import sys
import typing
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "docs" / "reference"
PART = re.compile(r"(<!-- generated: ([a-z-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; a `|` in a cell is escaped."""
    lines = [list(head), ["---"] * len(list(head)), *[list(row) for row in rows]]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def first_line(thing: Any) -> str:
    """The first sentence block of a docstring, on one line."""
    return " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())


# --- settings ------------------------------------------------------------------------------------------------------


def settings() -> str:
    """One table for each group of fields, in the order of the file."""
    from milepost import settings as module

    hints = typing.get_type_hints(module.Settings, include_extras=True)
    groups: dict[str, list[str]] = {}
    group = ""
    for line in inspect.getsource(module.Settings).splitlines():
        if found := re.fullmatch(r"    # (.+)", line):
            group = found[1]
        elif (found := re.match(r"    (\w+): ", line)) and found[1] in hints:
            groups.setdefault(group, []).append(found[1])
    defaults = dict(zip(module.Settings.__struct_fields__[::-1], module.Settings.__struct_defaults__[::-1], strict=False))
    parts = []
    for name, fields in groups.items():
        rows = [_setting(field, hints[field], defaults[field]) for field in fields]
        parts.append(f"### {name[0].upper()}{name[1:]}\n\n" + table(["setting", "type", "default", "meaning"], rows))
    return "\n" + "\n".join(parts) + "\n"


def _setting(field: str, hint: Any, default: Any) -> list[str]:
    type_, *metas = typing.get_args(hint)
    (meta,) = [one for one in metas if isinstance(one, msgspec.Meta)]
    allowed = "".join(
        f", {sign} {plain(value)}" for sign, value in (("≥", meta.ge), (">", meta.gt), ("≤", meta.le)) if value is not None
    )
    shown = (
        "none"
        if default is None
        else f"`{plain(default)}`"
        if isinstance(default, float)
        else f"`{default}`"
        if default != ""
        else "empty"
    )
    return [
        f"`{field}`",
        _type_name(type_) + allowed,
        shown.replace("True", "true").replace("False", "false"),
        meta.description or "",
    ]


def plain(number: float) -> str:
    """A number without an exponent."""
    return str(int(number)) if number == int(number) else str(number)


def _type_name(type_: Any) -> str:
    names = {str: "text", int: "integer", float: "number", bool: "true or false", type(None): "none"}
    if typing.get_origin(type_) is typing.Literal:
        return " or ".join(f"`{value}`" for value in typing.get_args(type_))
    if typing.get_args(type_):
        return " or ".join(_type_name(part) for part in typing.get_args(type_) if part is not type(None))
    return names.get(type_, str(type_))


# --- states, errors, store -----------------------------------------------------------------------------------------


def moves() -> str:
    """The state machine as a table, in the order of a job's life."""
    from milepost.job import MOVES, State

    rows = [[f"`{old}`", ", ".join(f"`{new}`" for new in State if new in MOVES[old]) or "none: final"] for old in State]
    return table(["from", "to"], rows)


def error_classes() -> list[type[Any]]:
    """The tree of `milepost.errors`, each class after its base, and those that the server adds."""
    from milepost import errors
    from milepost.server import errors as server_errors

    found: list[type[Any]] = []

    def walk(cls: type[Any]) -> None:
        if cls.__module__ in (errors.__name__, server_errors.__name__):
            found.append(cls)
        for sub in cls.__subclasses__():
            walk(sub)

    walk(errors.MilepostError)
    return found


def errors() -> str:
    """Every error class with its code and its HTTP status on the native API."""
    from milepost.errors import JobError, LimitExceeded, MilepostError, ProtocolError, Unreachable, WaitTimeout
    from milepost.server.errors import LIMIT_STATUS, STATUS

    client_only = (JobError, WaitTimeout, Unreachable, ProtocolError)
    rows = []
    for cls in error_classes():
        status = str(next(STATUS[base] for base in cls.__mro__ if base in STATUS))
        if issubclass(cls, client_only) or cls is MilepostError:
            status = "-"
        elif cls is LimitExceeded:
            by_status: dict[int, list[str]] = {}
            for limit, code in sorted(LIMIT_STATUS.items()):
                by_status.setdefault(code, []).append(f"`{limit}`")
            status += "".join(f"; {code}: {', '.join(limits)}" for code, limits in sorted(by_status.items()))
        rows.append(
            [
                f"`{cls.code}`",
                f"`{cls.__name__}`",
                f"`{cls.__mro__[1].__name__}`",
                "yes" if cls.retryable else "no",
                status,
                first_line(cls),
            ]
        )
    return table(["code", "class", "is a", "retryable", "HTTP", "meaning"], rows)


def store_rules() -> str:
    """The numbered rules of the Store protocol."""
    from milepost import store

    return "\n" + _rules(inspect.getdoc(store) or "") + "\n"


def dispatch_rules() -> str:
    """The numbered rules of the Dispatch protocol."""
    from milepost import dispatch

    return "\n" + _rules(inspect.getdoc(dispatch) or "") + "\n"


def _rules(text: str) -> str:
    items: list[str] = []
    for line in text.splitlines():
        if found := re.match(r"\s*(\d+)\. (.+)", line):
            items.append(f"{found[1]}. {found[2]}")
        elif items and line.startswith("  "):
            items[-1] += " " + line.strip()
        elif items and not line.strip():
            break
    return "\n".join(items) + "\n"


# --- failures of jobs ----------------------------------------------------------------------------------------------

FAILING = ("Failure", "PermanentError", "RetryableError")


def failure_codes() -> dict[str, str]:
    """The codes that `error.code` of a job can have, written as literals in the source, and where."""
    found: dict[str, str] = {}
    package = ROOT / "src" / "milepost"
    for path in sorted([*package.glob("engine/*.py"), *package.glob("store/*.py"), *package.glob("work/**/*.py")]):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or getattr(node.func, "id", getattr(node.func, "attr", "")) not in FAILING:
                continue
            for code in [node.args[0]] if node.args else [word.value for word in node.keywords if word.arg == "code"]:
                if isinstance(code, ast.Constant) and isinstance(code.value, str):
                    found.setdefault(code.value, str(path.relative_to(package)))
    return found


# --- routes --------------------------------------------------------------------------------------------------------


class Endpoint(NamedTuple):
    """One method of one path that the server answers."""

    method: str
    path: str


def routes() -> list[Endpoint]:
    """Every route of the application: the native ones and the facades'."""
    from milepost.clock import SystemClock
    from milepost.engine.kinds import KINDS
    from milepost.engine.service import Service
    from milepost.server.app import create_app
    from milepost.server.native import ROUTES
    from milepost.settings import Settings
    from milepost.store.sqlite import SqliteStore

    settings, clock, nothing = Settings(), SystemClock(), typing.cast("Any", None)
    app = create_app(Service(SqliteStore(":memory:"), nothing, KINDS, clock, settings), settings, clock)
    found = [Endpoint(route.method, route.path) for route in ROUTES]
    for route in app._routes:
        path = getattr(route, "path", "")
        if "{rest" in path or "_other}" in path or "_minor}" in path:  # whole families of paths that are nothing
            continue
        path = re.sub(r"{(\w+):\w+}", r"{\1}", path).replace("{version}", "v2")
        if path.startswith("/identity/v3"):  # the same as without the prefix
            continue
        found += [Endpoint(method, path) for method in _methods(route) if method != "HEAD"]
    return list(dict.fromkeys(found))


def _methods(route: Any) -> list[str]:
    """The methods that a facade's route answers with something else than 405."""
    endpoint = route.endpoint
    handlers = getattr(endpoint, "_handlers", None)
    if handlers is None and inspect.isfunction(endpoint):
        handlers = inspect.getclosurevars(endpoint).nonlocals.get("handlers")
    return sorted(route.methods or () if handlers is None else handlers)


def native_routes() -> str:
    """The native API's routes, with what they say of themselves."""
    from milepost.server.native import ROUTES

    rows = []
    for route in ROUTES:
        answers = "; ".join(f"{status} {text}" for status, (_, text) in route.answers.items())
        errors_ = ", ".join(map(str, route.errors))
        rows.append([f"`{route.method} {route.path}`", route.about, answers, errors_ or "-", "no" if route.open else "yes"])
    return table(["route", "what it does", "answers", "errors", "identity"], rows)


def native_parameters() -> str:
    """The query parameters and headers that native routes read."""
    from milepost.server.native import ROUTES

    used: dict[Any, list[str]] = {}
    for route in ROUTES:
        for parameter in route.parameters:
            used.setdefault(parameter, []).append(f"`{route.method} {route.path}`")
    rows = []
    for parameter, places in used.items():
        about = (
            parameter.about
            + (f" ({' or '.join(parameter.choices)})" if parameter.choices else "")
            + (", repeatable" if parameter.many else "")
        )
        rows.append(
            [f"`{parameter.name}`", parameter.place, about, ", ".join(places) if len(places) < 7 else f"{len(places)} routes"]
        )
    return table(["name", "where", "meaning", "read by"], rows)


# --- metrics -------------------------------------------------------------------------------------------------------


def metrics() -> str:
    """Every metric family in `server/metrics.py`, as `/metrics` names it."""
    from milepost.server import metrics as module

    rows = []
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if not isinstance(node, ast.Call):
            continue
        maker = getattr(node.func, "id", "")
        type_ = {"CounterMetricFamily": "counter", "GaugeMetricFamily": "gauge", "HistogramMetricFamily": "histogram"}.get(maker)
        words = [str(argument.value) for argument in node.args[:2] if isinstance(argument, ast.Constant)]
        if type_ is None or len(words) < 2:  # the words of ENGINE come below
            continue
        labels: list[str] = next((ast.literal_eval(word.value) for word in node.keywords if word.arg == "labels"), [])
        rows.append(_metric(words[0], type_, labels, words[1]))
    for field, (name, text, names) in module.ENGINE.items():
        rows.append(_metric(name, "histogram" if field == "ran" else "counter", names, text))
    return table(["metric", "type", "labels", "meaning"], sorted(rows))


def _metric(name: str, type_: str, labels: Iterable[str], text: str) -> list[str]:
    shown = f"{name}_total" if type_ == "counter" else name
    return [f"`{shown}`", type_, ", ".join(f"`{label}`" for label in labels) or "-", text]


# --- kinds ---------------------------------------------------------------------------------------------------------


def built_in_kinds() -> list[Any]:
    """The kinds that come with the package, by name."""
    from milepost import wiring
    from milepost.engine.kinds import KINDS

    for module in wiring.BUILT_IN:
        importlib.import_module(module)
    return [kind for kind in KINDS if f"{kind.function.__module__}.".startswith(tuple(f"{one}." for one in wiring.BUILT_IN))]


def kinds() -> str:
    """A section for each built-in kind, from its registration and its types."""
    parts = []
    for kind in built_in_kinds():
        limit = "none" if kind.timeout_s is None else f"{kind.timeout_s:g} s"
        how = {"async": "on the loop", "thread": "in a thread", "isolated": "in a subprocess"}[kind.style]
        facts = f"Queue `{kind.queue}`, attempts {kind.attempts}, timeout of an attempt: {limit}, runs {how}."
        if kind.crashes_max is not None:
            facts += f" {'Any number' if math.isinf(kind.crashes_max) else int(kind.crashes_max)} of its workers may die."
        section = [f"## `{kind.name}`\n", f"{kind.description}\n", facts + "\n"]
        for title, schema in zip(("Input", "Result"), kind.schemas(), strict=True):
            section += _fields(title, schema, (schema or {}).get("$defs", {}))
        parts.append("\n".join(section))
    return "\n" + "\n".join(parts) + "\n"


def _fields(title: str, schema: dict[str, Any] | None, defs: dict[str, Any]) -> list[str]:
    schema = _resolve(schema or {}, defs)
    rows = _field_rows(schema, defs, "")
    if not rows:
        return [f"{title}: {_json_type(schema, defs) if schema else 'any JSON' if schema is not None else 'none'}.\n"]
    return [f"{title}:\n", table(["field", "type", "default", "meaning"], rows)]


def _field_rows(schema: dict[str, Any], defs: dict[str, Any], prefix: str) -> list[list[str]]:
    rows = []
    for name, raw in schema.get("properties", {}).items():
        field = _resolve(raw, defs)
        default = (
            "required"
            if name in schema.get("required", ())
            else f"`{json.dumps(field['default'])}`"
            if "default" in field
            else "-"
        )
        rows.append([f"`{prefix}{name}`", _json_type(field, defs), default, _about(raw) or _about(field)])
        rows += _field_rows(field, defs, f"{prefix}{name}.")
    return rows


def _about(field: dict[str, Any]) -> str:
    own = field.get("description") or next((one["description"] for one in field.get("anyOf", ()) if "description" in one), "")
    return " ".join(own.split())


def _resolve(schema: dict[str, Any], defs: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in schema:
        return schema
    return {**defs[schema["$ref"].rpartition("/")[2]], **{key: value for key, value in schema.items() if key != "$ref"}}


def _json_type(schema: dict[str, Any], defs: dict[str, Any]) -> str:
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(_json_type(_resolve(one, defs), defs) for one in schema["anyOf"])
    if schema.get("type") == "array":
        return "list of " + _json_type(_resolve(schema.get("items", {}), defs), defs)
    bounds = [f"{sign} {schema[key]}" for key, sign in _BOUNDS.items() if key in schema]
    return ", ".join([str(schema.get("type", "any JSON")), *bounds])


_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "minLength": "characters ≥", "maxLength": "characters ≤"}


# --- the command line ----------------------------------------------------------------------------------------------


class Command(NamedTuple):
    """One command with the options that it takes."""

    name: str
    click: Any
    options: list[str]


def commands() -> list[Command]:
    """Every command, groups' commands under their full names."""
    import typer

    from milepost.cli import app

    found: list[Command] = []

    def walk(command: Any, name: str) -> None:
        subs = getattr(command, "commands", {})
        for sub in sorted(subs):
            walk(subs[sub], f"{name} {sub}")
        if (not subs or command.invoke_without_command) and not command.hidden and name != "milepost":
            options = [max(one.opts, key=len) for one in command.params if one.param_type_name == "option"]
            found.append(Command(name, command, [option for option in options if option != "--help"]))

    walk(typer.main.get_command(app), "milepost")
    return sorted(found)


COMMON_IN = 6  # an option of so many commands, with the same meaning, is told once


def command_line() -> str:
    """A section for each command: what it does, its arguments and options; before them the options that many have."""
    every = commands()
    rows = {command.name: [_option(one) for one in command.click.params if _is_option(one)] for command in every}
    times = Counter(tuple(row) for command_rows in rows.values() for row in command_rows)
    common = [list(row) for row, count in times.items() if count >= COMMON_IN]
    parts = ["## Options that many commands have\n", table(["option", "default", "meaning"], common)]
    for command in every:
        arguments = [one for one in command.click.params if one.param_type_name == "argument" and not one.hidden]
        usage = " ".join([command.name, *(_metavar(one) for one in arguments), *(["[OPTIONS]"] if command.options else [])])
        parts += [f"## `{command.name}`\n", f"{_plain(command.click.help)}\n", f"```text\n{usage}\n```\n"]
        if arguments:
            parts.append(table(["argument", "meaning"], [[f"`{_metavar(one)}`", _plain(one.help)] for one in arguments]))
        own = [row for row in rows[command.name] if row not in common]
        if own:
            parts.append(table(["option", "default", "meaning"], own))
        shared = [row[0].partition(",")[0] for row in rows[command.name] if row in common]
        if shared:
            parts.append(f"And: {', '.join(shared)}\n")
    return "\n" + "\n".join(parts) + "\n"


def _is_option(parameter: Any) -> bool:
    return parameter.param_type_name == "option" and "--help" not in parameter.opts and not parameter.hidden


def _metavar(argument: Any) -> str:
    text = (argument.metavar or argument.name.upper()) + ("…" if argument.nargs == -1 else "")
    return text if argument.required or text.startswith("[") else f"[{text}]"


def _option(option: Any) -> list[str]:
    names = ", ".join(f"`{name}`" for name in [*sorted(option.opts, key=len, reverse=True), *option.secondary_opts])
    default = option.default
    shown = [] if default is None or default in (False, (), []) or callable(default) else [f"`{default}`"]
    if option.envvar:
        shown += [f"`{one}`" for one in ([option.envvar] if isinstance(option.envvar, str) else option.envvar)]
    return [names, ", ".join(shown) or "-", _plain(option.help)]


def _plain(text: str | None) -> str:
    """Help without Rich's markup and line breaks within paragraphs."""
    paragraphs = re.sub(r"\[/?(?:bold|dim|italic|cyan|green|red|yellow)\]", "", text or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.replace("\b", "").split()) for paragraph in paragraphs).strip()


def exit_codes() -> dict[str, int]:
    """The command line's exit codes by name."""
    from milepost.cli.exits import Exit

    return {one.name.lower(): int(one) for one in Exit}


def exit_table() -> str:
    """The exit codes with what their lines in the source say."""
    from milepost.cli import exits

    rows = [
        [found[2], f"`{found[1].lower()}`", found[3]]
        for line in inspect.getsource(exits.Exit).splitlines()
        if (found := re.fullmatch(r"    (\w+) = (\d+)  # (.+)", line))
    ]
    return table(["code", "name", "meaning"], rows)


# --- writing -------------------------------------------------------------------------------------------------------

# --- Huawei's wire --------------------------------------------------------------------------------------------------


def huawei_routes() -> str:
    """The routes of the facade; their handlers are named after what they do."""
    from milepost.server.facades import huawei

    state = typing.cast("Any", type("State", (), {"store": None}))
    rows = []
    for route in huawei.routes(state):
        path = re.sub(r"{(\w+):\w+}", r"{\1}", typing.cast("Any", route).path)
        for method, handler in sorted(typing.cast("Any", route).endpoint._handlers.items()):
            name = "show_job" if handler.__qualname__.startswith("JobQuery") else handler.__qualname__.partition(".")[0]
            rows.append([f"`{method} {path}`", name.strip("_").replace("_", " ")])
    return table(["route", "what it does"], rows)


def huawei_codes() -> str:
    """Every reason with its status and code in both services, and what a kind says more exactly."""
    from milepost.wire.huawei.errors import BY_KIND, REASONS, REFUSALS, Service

    def said(reason: str, service: Service) -> str:
        status, code = REFUSALS[service][reason]
        return f"{status} `{code}`"

    rows = [[f"`{reason}`", said(reason, Service.EVS), said(reason, Service.ECS)] for reason in REASONS]
    exact = [[f"`{reason}`", f"`{kind}`", f"{status} `{code}`"] for (reason, kind), (status, code) in BY_KIND.items()]
    return table(["reason", "EVS", "ECS"], rows) + "\n" + table(["reason", "of the kind", "instead"], exact)


def huawei_services() -> str:
    """The services whose jobs the client follows."""
    from milepost.wire.huawei.other import SERVICES

    rows = [
        [f"`huawei-{name}`", f"`{one.path}`", one.shape, ", ".join(f"`{key}`" for key in one.entities) or "-", one.quirk or "-"]
        for name, one in SERVICES.items()
    ]
    return table(["wire", "path", "shape", "entities", "quirks that are taken"], rows)


def huawei_submits() -> str:
    """What the client submits by the name of its job."""
    from milepost.wire.huawei.submits import ROUTES

    rows = [
        [f"`{kind}`", f"`huawei-{service}`", f"`{route.method} {route.path}`", f"`{route.body}`" if route.body else "-"]
        for service, routes_ in ROUTES.items()
        for kind, route in routes_.items()
    ]
    return table(["kind", "wire", "is sent to", "key of the body"], rows)


PARTS: dict[str, Callable[[], str]] = {
    "settings": settings,
    "moves": moves,
    "errors": errors,
    "store-rules": store_rules,
    "dispatch-rules": dispatch_rules,
    "native-routes": native_routes,
    "native-parameters": native_parameters,
    "metrics": metrics,
    "kinds": kinds,
    "commands": command_line,
    "exit-codes": exit_table,
    "huawei-routes": huawei_routes,
    "huawei-codes": huawei_codes,
    "huawei-services": huawei_services,
    "huawei-submits": huawei_submits,
}


def render(text: str) -> str:
    """The page with its generated parts as the code has them now."""
    return PART.sub(lambda part: part[1] + PARTS[part[2]]() + part[4], text)


def main() -> None:
    changed = []
    for page in sorted(REFERENCE.glob("*.md")):
        old = page.read_text(encoding="utf-8")
        new = render(old)
        if new != old:
            page.write_text(new, encoding="utf-8")
            changed.append(page.name)
    sys.stdout.write(f"written again: {', '.join(changed)}\n" if changed else "docs/reference is up to date\n")


if __name__ == "__main__":
    main()
