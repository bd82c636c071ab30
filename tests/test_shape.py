"""The shape of the project: what imports what, how long files are, what no file may name, what a bare import costs."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SRC = ROOT / "src"
PACKAGE = SRC / "milepost"
LINES_MAX = 450
LONGER: dict[str, str] = {
    # path under src/milepost: why it is one file all the same
    "egress.py": "a guard that nothing goes around: parsing, resolving, pinning and following belong together",
    "client/bulk.py": "one conversation: what is due, asked together, streamed and given up are one heap",
}
SOURCES = sorted(PACKAGE.rglob("*.py"))


def tracked() -> list[Path]:
    """The files of the repository; all files but the ignored folders where this is no clone."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode == 0 and listed.stdout:
        return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]
    return [path for path in ROOT.rglob("*") if path.is_file() and not {".venv", ".git", "__pycache__"} & set(path.parts)]


def module_name(path: Path) -> str:
    parts = path.relative_to(SRC).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)


# --- imports -------------------------------------------------------------------------------------------------------


def test_the_import_contracts_hold() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def imported_at_import(path: Path, modules: set[str]) -> set[str]:
    """The project's modules that importing this file imports: not those inside functions or under TYPE_CHECKING."""
    name = module_name(path)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()

    def look(nodes: list[ast.stmt]) -> None:
        for node in nodes:
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    up = package.split(".")[: len(package.split(".")) - node.level + 1]
                    base = ".".join([*up, *([base] if base else [])])
                found.update(f"{base}.{alias.name}" if f"{base}.{alias.name}" in modules else base for alias in node.names)
            elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                look(node.orelse)
            elif isinstance(node, ast.If | ast.Try | ast.With | ast.ClassDef):
                look(node.body)
                for part in ("orelse", "finalbody"):
                    look(getattr(node, part, []))
                for handler in getattr(node, "handlers", []):
                    look(handler.body)

    look(ast.parse(path.read_text(encoding="utf-8")).body)
    return {module for module in found if module in modules and module != name}


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """One path round for each strongly tied set of modules."""
    state: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        state[module] = 1
        stack.append(module)
        for other in sorted(graph[module]):
            if state.get(other) == 1:
                found.append([*stack[stack.index(other) :], other])
            elif other not in state:
                visit(other)
        stack.pop()
        state[module] = 2

    for module in sorted(graph):
        if module not in state:
            visit(module)
    return found


def test_no_module_imports_itself_on_a_way_round() -> None:
    modules = {module_name(path) for path in SOURCES}
    graph = {module_name(path): imported_at_import(path, modules) for path in SOURCES}
    assert sum(map(len, graph.values())) > 20, "the imports were not read"
    assert cycles(graph) == []


def test_the_cycle_finder_finds_a_cycle() -> None:
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c", "a"]]


@pytest.mark.parametrize(
    "heavy", ["starlette", "granian", "typer", "rich", "structlog", "obstore", "oslo_utils", "sqlite3", "milepost.server"]
)
def test_importing_milepost_does_not_import(heavy: str) -> None:
    done = python(f"import sys, milepost; sys.exit({heavy!r} in sys.modules)")
    assert done.returncode == 0, done.stderr or f"import milepost imports {heavy}"


def test_every_public_name_exists() -> None:
    done = python(
        "import milepost\n"
        "missing = [name for name in milepost.__all__ if getattr(milepost, name, None) is None]\n"
        "assert not missing, missing"
    )
    assert done.returncode == 0, done.stderr


# --- files ---------------------------------------------------------------------------------------------------------


def test_no_source_file_is_long_without_a_reason() -> None:
    lengths = {str(path.relative_to(PACKAGE)): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert {name: length for name, length in lengths.items() if length > LINES_MAX and name not in LONGER} == {}
    assert {name for name in LONGER if lengths.get(name, 0) <= LINES_MAX} == set(), "listed as longer, but they are not"


def test_every_module_says_what_it_is_for() -> None:
    silent = [
        module_name(path)
        for path in SOURCES
        if (text := path.read_text(encoding="utf-8")).strip() and not ast.get_docstring(ast.parse(text))
    ]
    assert silent == []


def undocumented(path: Path) -> list[str]:
    """Public functions and classes at the module's top that have no docstring."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [
        f"{module_name(path)}.{node.name}"
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]


# The contracts, and what users import by name.
CONTRACTS = (
    "job.py",
    "errors.py",
    "clock.py",
    "settings.py",
    "process.py",
    "store/__init__.py",
    "dispatch/__init__.py",
    "engine/context.py",
    "engine/kinds.py",
)


def test_every_contract_has_a_docstring() -> None:
    assert [name for path in CONTRACTS for name in undocumented(PACKAGE / path)] == []


@pytest.mark.parametrize("module", ["milepost", "milepost.testing"])
def test_every_public_name_has_a_docstring(module: str) -> None:
    home = importlib.import_module(module)
    public = {name: getattr(home, name) for name in getattr(home, "__all__", ())}
    silent = [name for name, value in public.items() if callable(value) and not (value.__doc__ or "").strip()]
    methods = [
        f"{name}.{method}"
        for name, value in public.items()
        if inspect.isclass(value) and value.__module__.startswith("milepost.client")
        for method, function in vars(value).items()
        if inspect.isfunction(function) and not method.startswith("_") and not function.__doc__ and method != "close"
    ]
    assert silent + methods == []


# Spelled in pieces, so that this file does not name them itself.
HOMES = "|".join(["ro" + "ot", "ho" + "me/[a-z]+", "wo" + "rk", "Us" + "ers/[A-Za-z]+"])
HOSTS = "|".join([r"pypi\." + "org", "files.python" + "hosted", "proxy.gol" + "ang", "index-" + "url", r"registry\.npm" + "js"])
FORBIDDEN = {
    "an absolute path of one machine": re.compile(rf"(?<![\w.{{}}-])/(?:{HOMES})/[\w.]"),
    "a package-registry host": re.compile(HOSTS),
    "a merge left open": re.compile(r"^(<{7} |>{7} )", re.MULTILINE),
    "a place that is not done": re.compile(r"\b(TO" + "DO|FIX" + "ME|X" + r"XX)\b"),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_file_names(what: str) -> None:
    seen = []
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        seen += [f"{path.relative_to(ROOT)}: {match.group()!r}" for match in FORBIDDEN[what].finditer(text)]
    assert seen == []


def test_pins_are_exact_and_name_no_place() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    assert len(lines) > 50
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9._+!-]+", line)] == []


def test_the_client_alone_needs_two_packages() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert sorted(re.split(r"[><=~! ]", line)[0] for line in project["dependencies"]) == ["msgspec", "pyreqwest"]


# --- CI ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "ci", "failed"),
    [
        ("needs qemu-img", "true", True),
        ("qemu-img is not installed", "true", True),
        ("needs qemu-img", "", False),
        ("only on Linux", "true", False),
    ],
)
def test_in_ci_a_skip_for_a_missing_program_fails(tmp_path: Path, reason: str, ci: str, failed: bool) -> None:
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "test_it.py").write_text(
        "import pytest\n\n"
        f"@pytest.mark.skipif(True, reason={reason!r})\ndef test_mark(): pass\n\n"
        f"def test_call(): pytest.skip({reason!r})\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "CI": ci},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ("1 failed, 1 error" if failed else "2 skipped") in done.stdout, done.stdout


def test_no_two_modules_of_the_tests_have_one_name() -> None:
    """pytest imports them by their bare names, so that one would be taken for the other, or stop the collection."""
    tests = [path for path in tracked() if path.suffix == ".py" and ROOT / "tests" in path.parents]
    bare = [path for path in tests if path.name != "conftest.py" and not path.with_name("__init__.py").exists()]
    names = [path.name for path in bare]
    assert [name for name in names if names.count(name) > 1] == []
