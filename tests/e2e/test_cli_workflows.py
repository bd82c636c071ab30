"""`milepost workflow`: written beside a running server, used by its next request, another project's out of reach."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request

import pytest
from rig import Server, milepost

from milepost.wire.qiniu.objects import encode_entry


def ask(url: str, **form: str) -> tuple[int, dict[str, object]]:
    body = urllib.parse.urlencode(form).encode() if form else None
    request = urllib.request.Request(url, body, {"Authorization": "QBox any:thing"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_a_workflow_is_stored_listed_used_and_removed(server: Server, tmp_path) -> None:
    url, data = {"MILEPOST_URL": server.url}, ("--data", str(server.folder / "data"))
    (tmp_path / "note.txt").write_text("hello")
    assert milepost("bucket", "create", "cli-flows", **url).code == 0
    assert milepost("object", "put", "cli-flows", "note.txt", "in/note.txt", cwd=tmp_path, **url).code == 0

    assert milepost("workflow", "list", "--json", *data).lines == []
    made = milepost("workflow", "add", "sums", "qhash/md5; qhash/sha1|saveas/cli-flows:$(name)$(ext).sum", "--json", *data)
    entry = encode_entry("cli-flows", "$(name)$(ext).sum")
    assert made.json == {"id": "sums", "project": "default", "fops": f"qhash/md5;qhash/sha1|saveas/{entry}"}
    assert [one["id"] for one in milepost("workflow", "list", "--json", *data).lines] == ["sums"]

    status, started = ask(f"{server.url}/pfop", bucket="cli-flows", key="in/note.txt", workflowTemplateID="sums")
    assert status == 200, started
    waited = milepost("wait", str(started["persistentId"]), "--wire", "qiniu", **url)
    assert waited.code == 0, waited.err
    _, told = ask(f"{server.url}/status/get/prefop?id={started['persistentId']}")
    assert (told["code"], told["taskFrom"]) == (0, "workflow: sums")
    assert told["items"][1]["key"] == "in/note.txt.sum"

    assert milepost("workflow", "remove", "sums", *data).code == 0
    assert milepost("workflow", "remove", "sums", *data).code == 6
    status, refused = ask(f"{server.url}/pfop", bucket="cli-flows", key="in/note.txt", workflowTemplateID="sums")
    assert (status, refused) == (612, {"error": "no such workflow template: sums"})


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (("add", "../x", "imageInfo"), 2, "a workflow's id is"),
        (("add", "x", " ; "), 2, "1 to 100 commands"),
        (("add", "x", "qhash/md5|saveas/!!!"), 2, "saveas takes bucket:key"),
        (("add", "x", "imageInfo", "--project", "nobodys"), 6, "nobodys"),
        (("list", "--project", "nobodys"), 6, "nobodys"),
    ],
)
def test_what_is_wrong_with_a_workflow_is_said(server: Server, args: tuple[str, ...], code: int, said: str) -> None:
    done = milepost("workflow", *args, "--data", str(server.folder / "data"))
    assert (done.code, said in done.err) == (code, True), done.err
