"""The unmodified gophercloud, as Debian ships it: `gophercloud/main.go` follows one import and prints what it saw."""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from pathlib import Path
from typing import Any

import msgspec
import pytest
from client_rig import PASSWORD, ImageFile, Running, Sources

GOPATH = Path("/usr/share/gocode")
PROGRAM = Path(__file__).with_name("gophercloud") / "main.go"
BUILD_S, RUN_S = 300, 90


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("go") is None:
        pytest.skip("needs go: apt-get install golang-go golang-github-gophercloud-gophercloud-dev")
    if not (GOPATH / "src/github.com/gophercloud/gophercloud").is_dir():
        pytest.skip("needs gophercloud: apt-get install golang-github-gophercloud-gophercloud-dev")
    folder = tmp_path_factory.mktemp("gophercloud")
    target = folder / "follow"
    environ = {**os.environ, "GO111MODULE": "off", "GOPATH": str(GOPATH), "GOCACHE": str(folder / "cache"), "GOFLAGS": ""}
    built = subprocess.run(
        ["go", "build", "-o", str(target), str(PROGRAM)], env=environ, capture_output=True, text=True, timeout=BUILD_S
    )
    assert built.returncode == 0, built.stderr
    return target


def follow(program: Path, server: Running, file: ImageFile, format: str, *, user: str = "admin") -> Any:
    command = [str(program), f"{server.url}/identity/v3/", user, PASSWORD, "demo", file.url, format, f"go-{uuid.uuid4().hex[:8]}"]
    ran = subprocess.run(command, capture_output=True, timeout=RUN_S)
    assert ran.returncode == 0, ran.stderr.decode()
    return msgspec.json.decode(ran.stdout)


@pytest.mark.timeout(BUILD_S + RUN_S)
def test_a_task_is_followed_to_its_end_and_the_image_downloaded(program: Path, server: Running, sources: Sources) -> None:
    file = sources.files["disk.qcow2"]
    seen = follow(program, server, file, "qcow2")
    assert (seen["created"]["status"], seen["created"]["message"]) == ("pending", "")
    final, image = seen["final"], seen["image"]
    assert (final["status"], final["id"]) == ("success", seen["created"]["id"])
    assert (image["status"], image["checksum"]) == ("active", file.md5)
    assert (seen["size"], seen["purpose"]) == (file.size, "test")
    assert seen["downloaded_sha512"] == file.sha512
    assert seen["after_delete"] == seen["unknown_task"] == "gophercloud.ErrDefault404"
    assert seen["bad_create"] == "gophercloud.ErrDefault400"


@pytest.mark.timeout(BUILD_S + RUN_S)
def test_tasks_are_listed_page_by_page_and_a_failure_says_why(program: Path, server: Running, sources: Sources) -> None:
    file = sources.files["disk.raw"]
    ids = [follow(program, server, file, "qcow2")["final"]["id"] for _ in range(3)]
    seen = follow(program, server, file, "qcow2")
    assert seen["final"]["status"] == "failure"
    assert "qcow2" in seen["final"]["message"]
    listed = seen["listed_two_by_two"]
    assert len(listed) == len(set(listed))
    assert {*ids, seen["final"]["id"]} <= set(listed)
    assert seen["pages"] >= 2


@pytest.mark.timeout(BUILD_S + RUN_S)
def test_a_member_is_refused(program: Path, server: Running, sources: Sources) -> None:
    if server.auth == "none":
        pytest.skip("without auth everybody is an admin")
    command = [str(program), f"{server.url}/identity/v3/", "member", PASSWORD, "demo", sources.url, "raw", "x"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=RUN_S)
    assert ran.returncode == 1
    assert ran.stderr.startswith("create: ")
    assert "tasks_api_access" in ran.stderr
