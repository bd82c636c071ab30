"""The documentation is right: generated parts are up to date, nothing is left out, links resolve, snippets run.

A fenced block is run when its info string says so:

    ```python file=shop.py      the file is written, for the blocks that follow
    ```python run               a program, run to its end
    ```console run              lines after `$ ` are commands; a line of output that follows must come, `…` matches anything;
                                `&` at the end starts a server and waits for its ready line

All blocks of a page share a folder and two ports; `8080` and `8081` in them are replaced by free ones.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
REFERENCE = DOCS / "reference"
PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md")])
FENCE = re.compile(r"^```([^\n`]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)

sys.path.insert(0, str(ROOT / "tools"))
import reference  # noqa: E402


def page(name: str) -> str:
    return (REFERENCE / name).read_text(encoding="utf-8")


# --- the reference -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(REFERENCE.glob("*.md")), ids=lambda path: path.name)
def test_the_generated_parts_are_up_to_date(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text == reference.render(text), "run `make docs`"


def test_every_generator_is_used_once() -> None:
    used = [match[2] for path in REFERENCE.glob("*.md") for match in reference.PART.finditer(path.read_text(encoding="utf-8"))]
    assert sorted(used) == sorted(reference.PARTS)


def test_every_setting_is_in_the_reference() -> None:
    from milepost.settings import Settings

    text = page("settings.md")
    assert [field for field in Settings.__struct_fields__ if f"`{field}`" not in text] == []


def test_every_state_and_move_is_in_the_reference() -> None:
    from milepost.job import State

    text = page("states.md")
    assert [state for state in State if f"\n| `{state}` | " not in text] == []


def test_every_event_type_is_in_the_reference() -> None:
    from milepost.job import EventType

    text = page("events.md")
    assert [event for event in EventType if f"\n| `{event}` | " not in text] == []


def test_every_error_class_and_code_is_in_the_reference() -> None:
    text = page("errors.md")
    assert [cls.__name__ for cls in reference.error_classes() if f"`{cls.code}` | `{cls.__name__}`" not in text] == []


def test_every_failure_code_is_in_the_reference() -> None:
    codes = reference.failure_codes()
    assert len(codes) >= 5
    assert {code: where for code, where in codes.items() if f"\n| `{code}` | " not in page("errors.md")} == {}


def test_every_route_is_in_the_reference() -> None:
    text = "".join(
        page(name) for name in ("http.md", "glance.md", "keystone.md", "wire-huawei.md", "qiniu-objects.md", "qiniu-pfop.md")
    )
    routes = reference.routes()
    assert len(routes) > 20
    assert [f"{route.method} {route.path}" for route in routes if f"`{route.method} {route.path}`" not in text] == []


def test_every_command_and_option_is_in_the_reference() -> None:
    text = page("cli.md")
    commands = reference.commands()
    assert len(commands) > 15
    asked = [*(command.name for command in commands), *(option for command in commands for option in command.options)]
    assert [one for one in asked if f"`{one}`" not in text] == []


def test_every_exit_code_is_in_the_reference() -> None:
    text = page("exit-codes.md")
    codes = reference.exit_codes()
    assert len(codes) >= 8
    assert {name: code for name, code in codes.items() if f"\n| {code} | " not in text} == {}


def test_every_built_in_kind_is_in_the_reference() -> None:
    kinds = reference.built_in_kinds()
    assert {"echo", "sleep", "import"} <= {kind.name for kind in kinds}
    assert [kind.name for kind in kinds if f"`{kind.name}`" not in page("kinds.md")] == []


def test_every_limit_is_on_the_page_of_limits() -> None:
    from milepost.settings import Settings

    text = page("limits.md")
    limits = [name for name in Settings.__struct_fields__ if "_max" in name or name.endswith("_limit")]
    assert [name for name in limits if f"`{name}`" not in text] == []


def test_every_metric_is_in_the_reference(page_folder: Folder) -> None:
    """Asked from a server that has run a job, so that counters with labels are there."""
    url = page_folder.serve(["serve"])
    submitted = page_folder.run([sys.executable, "-c", SUBMIT, url])
    assert submitted.returncode == 0, submitted.stderr
    names = page_folder.run([sys.executable, "-c", METRICS, url]).stdout.split()
    assert len(names) > 10
    assert [name for name in names if f"`{name}`" not in page("metrics.md")] == []


SUBMIT = (
    "import sys, milepost\n"
    "with milepost.Client(sys.argv[1]) as client: client.wait(client.submit('echo', {'a': 1}), timeout_s=60)"
)
METRICS = (
    "import sys, urllib.request\n"
    "for line in urllib.request.urlopen(sys.argv[1] + '/metrics').read().decode().splitlines():\n"
    "    if line.startswith('# TYPE '): print(line.split()[2])"
)


# --- links ---------------------------------------------------------------------------------------------------------

LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")


def anchors(path: Path) -> set[str]:
    """As GitHub makes them from headings."""
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.strip().lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_resolve(path: Path) -> None:
    broken = []
    for target in LINK.findall(FENCE.sub("", path.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        there = (path.parent / name).resolve() if name else path
        if not there.exists() or (anchor and there.suffix == ".md" and anchor not in anchors(there)):
            broken.append(target)
    assert broken == []


def test_every_page_is_linked_from_the_index() -> None:
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    linked = {(DOCS / target.partition("#")[0]).resolve() for target in LINK.findall(index)}
    assert [str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md") if path.name != "index.md" and path not in linked] == []


def test_readme_and_architecture_are_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 175
    assert len((ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").splitlines()) <= 200


def test_every_test_that_the_readme_names_exists() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"\[(test_\w+)\]\((tests/[\w/.]+)\)", text)
    assert len(named) >= 10
    for test, path in named:
        assert re.search(rf"def {test}\(", (ROOT / path).read_text(encoding="utf-8")), f"{path} has no {test}"


# --- snippets ------------------------------------------------------------------------------------------------------


class Block(NamedTuple):
    """A fenced block: `language` and the rest of its info string, the text, and its line for messages."""

    language: str
    how: str
    text: str
    line: int


def blocks(path: Path) -> list[Block]:
    text = path.read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        language, _, how = match[1].partition(" ")
        found.append(Block(language, how, match[2], text.count("\n", 0, match.start()) + 1))
    return found


RUN_PAGES = [path for path in PAGES if any(block.how == "run" for block in blocks(path))]


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


class Folder:
    """A folder with two ports of its own, where the blocks of one page run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.port, self.other_port = free_ports(2)
        self.servers: list[subprocess.Popen[bytes]] = []
        home = path / "home"
        home.mkdir()
        programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("MILEPOST_", "OS_"))},
            "PATH": programs,
            "HOME": str(home),
            "MILEPOST_URL": f"http://127.0.0.1:{self.port}",
            "MILEPOST_PORT": str(self.port),
            "COLUMNS": "200",
        }

    def here(self, text: str) -> str:
        return text.replace("8080", str(self.port)).replace("8081", str(self.other_port))

    def run(self, command: list[str] | str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command if isinstance(command, list) else ["bash", "-c", command],
            cwd=self.path, env=self.env, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip

    def serve(self, arguments: list[str]) -> str:
        """Start `milepost serve` or `rehearse` and wait for its ready line; its URL."""
        log = self.path / f"server-{len(self.servers)}.log"
        with log.open("wb") as out:
            server = subprocess.Popen(
                [str(Path(sys.executable).parent / "milepost"), *arguments],
                cwd=self.path, env=self.env, stdout=out, stderr=subprocess.STDOUT,
            )  # fmt: skip
        self.servers.append(server)
        end_s = time.monotonic() + 60
        while time.monotonic() < end_s and server.poll() is None:
            if found := re.search(r"ready.*?(http://[\d.:a-z]+)", log.read_text(encoding="utf-8", errors="replace")):
                return found[1]
            time.sleep(0.05)
        raise AssertionError(f"the server is not ready: {log.read_text(encoding='utf-8', errors='replace')}")

    def close(self) -> None:
        for server in self.servers:
            if server.poll() is None:
                server.send_signal(signal.SIGTERM)
        for server in self.servers:
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


@pytest.fixture
def page_folder(tmp_path: Path) -> Iterator[Folder]:
    folder = Folder(tmp_path)
    yield folder
    folder.close()


@pytest.mark.parametrize("path", RUN_PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_snippets_run(path: Path, page_folder: Folder) -> None:
    for block in blocks(path):
        where = f"{path.relative_to(ROOT)}:{block.line}"
        text = page_folder.here(block.text)
        if block.how.startswith("file="):
            (page_folder.path / block.how.removeprefix("file=")).write_text(text, encoding="utf-8")
        elif block.how == "run" and block.language == "python":
            done = page_folder.run([sys.executable, "-c", text])
            assert done.returncode == 0, f"{where}: {done.stderr}{done.stdout}"
        elif block.how == "run":
            run_console(page_folder, text, where)


def run_console(folder: Folder, text: str, where: str) -> None:
    """Each command of a block, and its output where the block shows some."""
    commands: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            commands.append((line[2:], []))
        elif commands and commands[-1][0].endswith("\\") and not commands[-1][1]:
            commands[-1] = (f"{commands[-1][0]}\n{line}", [])
        elif line.strip():
            commands[-1][1].append(line)
    assert commands, f"{where}: no command"
    for command, expected in commands:
        if command.endswith("&"):
            words = command.removesuffix("&").split()
            assert words[:2] in (["milepost", "serve"], ["milepost", "rehearse"]), f"{where}: only a server runs on"
            folder.serve(words[1:])
            continue
        done = folder.run(command)
        assert done.returncode == 0, f"{where}: {command}\n{done.stdout}{done.stderr}"
        check_output(expected, done.stdout, f"{where}: {command}")


def check_output(expected: list[str], printed: str, where: str) -> None:
    """Each expected line comes, in this order."""
    lines = [line.rstrip() for line in printed.splitlines()]
    for want in expected:
        pattern = re.compile(".*".join(map(re.escape, want.rstrip().split("…"))))
        while lines and not pattern.fullmatch(lines[0]):
            lines.pop(0)
        assert lines, f"{where}: no line like {want!r} in\n{printed}"
        lines.pop(0)


def test_the_signature_check_that_is_shown_checks() -> None:
    """The function of how-to/receive-callbacks.md, against what the courier signs."""
    from milepost.engine.courier import sign

    (text,) = [block.text for block in blocks(DOCS / "how-to" / "receive-callbacks.md") if "def is_genuine" in block.text]
    shown: dict[str, Any] = {}
    exec(compile(text, "receive-callbacks.md", "exec"), shown)
    secret, body, now_s = "whsec_" + base64.b64encode(bytes(range(32))).decode(), b'{"type":"job.succeeded"}', int(time.time())

    def headers(at_s: int) -> dict[str, str]:
        return {
            "webhook-id": "dlv_1",
            "webhook-timestamp": str(at_s),
            "webhook-signature": sign(secret, "dlv_1", at_s, body),
        }

    assert shown["is_genuine"](secret, headers(now_s), body)
    assert not shown["is_genuine"](secret, headers(now_s), body + b" ")
    assert not shown["is_genuine"](secret, headers(now_s - 3600), body)
    assert not shown["is_genuine"](secret, {**headers(now_s), "webhook-id": "dlv_2"}, body)
    assert not shown["is_genuine"]("whsec_" + base64.b64encode(bytes(32)).decode(), headers(now_s), body)


def test_the_pages_that_promise_to_run_do() -> None:
    assert {"README.md", "docs/tutorial.md"} <= {str(path.relative_to(ROOT)) for path in RUN_PAGES}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_snippets_are_well_formed(path: Path) -> None:
    """Also those that are not run: Python compiles, JSON decodes, and each block names its language."""
    for block in blocks(path):
        where = f"{path.relative_to(ROOT)}:{block.line}"
        assert block.language, f"{where}: the block names no language"
        if block.language == "python":
            compile(block.text, where, "exec")
        elif block.language == "json":
            msgspec.json.decode(block.text)
