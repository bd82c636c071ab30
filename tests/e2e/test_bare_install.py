"""`pip install milepost` is the client alone: two packages, importable, and a command that says how to get the rest."""

from __future__ import annotations

import json
import subprocess
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.timeout(600)  # whichever comes first installs


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs folder of a new virtual environment with nothing but this project, installed from its wheel."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder / "venv", with_pip=True)
    programs = folder / "venv" / "bin"
    pip = [str(programs / "pip"), "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(folder), str(ROOT)], check=True)
    (wheel,) = folder.glob("milepost-*.whl")
    subprocess.run([*pip, "install", "-c", str(ROOT / "constraints.txt"), str(wheel)], check=True)
    return programs


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, timeout=180, cwd="/")


def test_the_wheel_has_every_file_of_the_package_and_nothing_else(bare: Path) -> None:
    (wheel,) = bare.parents[1].glob("milepost-*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    package = ROOT / "src" / "milepost"
    files = {path.relative_to(ROOT / "src").as_posix() for path in package.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert names == files
    assert {"milepost/py.typed", "milepost/store/sql/sqlite/job.sql"} <= names


def test_the_client_alone_installs_two_packages(bare: Path) -> None:
    listed = run(bare / "pip", "list", "--format", "json", "--disable-pip-version-check")
    names = {entry["name"] for entry in json.loads(listed.stdout)} - {"pip", "setuptools"}
    assert names == {"milepost", "msgspec", "pyreqwest"}


def test_the_client_alone_imports(bare: Path) -> None:
    done = run(bare / "python", "-c", "import milepost; milepost.Client; milepost.AsyncClient; print(milepost.__file__)")
    assert done.returncode == 0, done.stderr
    assert str(bare.parent) in done.stdout, "another copy was imported"


def test_every_public_name_is_there_without_the_extras(bare: Path) -> None:
    done = run(bare / "python", "-c", "import milepost\nfor name in milepost.__all__: getattr(milepost, name)")
    assert done.returncode == 0, done.stderr


def test_the_command_without_its_extra_says_what_to_install(bare: Path) -> None:
    done = run(bare / "milepost", "--help")
    assert done.returncode not in (0, -1)
    assert "pip install 'milepost[cli]'" in done.stderr
    assert "Traceback" not in done.stderr
