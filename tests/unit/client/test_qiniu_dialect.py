"""The client's dialect of Qiniu: what it sends, signs and reads, where ids go, and what it says it cannot do."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qs

import pytest

from milepost import errors
from milepost.client.dialects import Query, Spec, dialect
from milepost.client.open import open_session
from milepost.client.signing import KeyPair, QiniuKeys, qiniu_from_environment
from milepost.job import State
from milepost.testing import ManualClock
from milepost.wire import Request, Response
from milepost.wire.signing import qiniu as signing

QINIU = dialect("qiniu")
URL = "https://api.example.test"
KEYS = {"QINIU_ACCESS_KEY": "ak", "QINIU_SECRET_KEY": "sk"}


def spec(input: Any, **options: Any) -> Spec:
    return Spec(**{"kind": "pfop", "input": json.dumps(input).encode(), "idempotency_key": "k", **options})


def session(endpoint: Any = URL, environ: dict[str, str] | None = None, **options: Any) -> Any:
    known = {"cloud": None, "token": None, "project": None, "credentials": None}
    return open_session(endpoint, wire="qiniu", environ=environ or {}, clock=ManualClock(), **{**known, **options})


def test_a_submit_is_the_vendors_form() -> None:
    asked = {"bucket": "b", "key": "a/中.mp4", "fops": ["avinfo", "vframe/jpg/offset/1"], "force": True, "idle": True}
    request = QINIU.submit(spec(asked, queue="fast", callback_url="http://x/told"))
    assert (request.method, request.url) == ("POST", "/pfop")
    assert parse_qs((request.body or b"").decode()) == {
        "bucket": ["b"],
        "key": ["a/中.mp4"],
        "fops": ["avinfo;vframe/jpg/offset/1"],
        "pipeline": ["fast"],
        "notifyURL": ["http://x/told"],
        "force": ["1"],
        "type": ["1"],
    }
    view = QINIU.read_submitted(Response(200, {}, b'{"persistentId":"z0.0A"}'), spec(asked))
    assert (view.id, view.kind, view.state) == ("z0.0A", "pfop", State.READY)


@pytest.mark.parametrize(
    ("input", "options", "path"),
    [
        ({"bucket": "b", "key": "k", "fops": "a"}, {"labels": {"a": "b"}}, "$.labels"),
        ({"bucket": "b", "key": "k", "fops": "a"}, {"kind": "import"}, "$.kind"),
        ({"bucket": "b", "key": "k"}, {}, "$.input.fops"),
        ({"bucket": "b", "key": "k", "fops": "a", "workflow_id": "w"}, {}, "$.input.fops"),
        ({"bucket": "b", "fops": "a"}, {}, "$.input"),
        ({"bucket": "b", "key": "k", "fops": "a", "colour": 1}, {}, "$.input"),
        ({"bucket": "b", "key": "k", "fops": "a", "pipeline": "p"}, {"queue": "q"}, "$.queue"),
        ({"bucket": "b", "key": "k", "fops": "a", "notify_url": "http://p"}, {"callback_url": "http://q"}, "$.callback_url"),
    ],
)
def test_what_the_cloud_has_not_is_refused_before_it_is_sent(input: Any, options: dict[str, Any], path: str) -> None:
    with pytest.raises(errors.InvalidInput) as caught:
        QINIU.submit(spec(input, **options))
    assert caught.value.path == path


def test_it_says_that_it_cannot_list_cancel_or_tell() -> None:
    with pytest.raises(errors.Conflict, match="cannot list") as caught:
        QINIU.list_jobs(Query())
    assert "--wire native" in (caught.value.hint or "")
    with pytest.raises(errors.Conflict, match="cannot cancel"):
        QINIU.act("z0.0A", "cancel")
    with pytest.raises(errors.Conflict, match="no history"):
        QINIU.events("z0.0A")


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (612, errors.NotFound),
        (631, errors.NotFound),
        (400, errors.InvalidInput),
        (401, errors.Unauthenticated),
        (419, errors.Forbidden),
        (573, errors.Throttled),
        (579, errors.CallerError),
        (599, errors.Unavailable),
        (503, errors.Throttled),
        (614, errors.Conflict),
    ],
)
def test_errors_are_typed_by_their_code(status: int, kind: type[errors.MilepostError]) -> None:
    error = QINIU.read_error(Response(status, {"x-reqid": "r"}, b'{"error":"not such id in prefop"}'), "z0.0A")
    assert type(error) is kind
    assert (error.message, error.request_id) == ("not such id in prefop", "r")


def test_an_answer_of_another_server_is_told_apart() -> None:
    with pytest.raises(errors.ProtocolError, match="not the status of a job"):
        QINIU.read_job(Response(200, {}, b"<html>"))
    with pytest.raises(errors.ProtocolError, match="not the answer to a submit"):
        QINIU.read_submitted(Response(200, {}, b"{}"), spec({}))
    assert "HTTP 599: <html>" in QINIU.read_error(Response(599, {}, b"<html>"), None).message


def test_an_id_is_asked_for_at_its_region() -> None:
    one = session({"z0": URL, "z1": "https://z1.example.test/"})
    asked = {id: one.addressed(QINIU.probe(id)).url for id in ("z0.0A", "z1.0B", "as0.0C", "16864pauo1vc9nhp12")}
    assert asked == {
        "z0.0A": f"{URL}/status/get/prefop?id=z0.0A",
        "z1.0B": "https://z1.example.test/status/get/prefop?id=z1.0B",
        "as0.0C": f"{URL}/status/get/prefop?id=as0.0C",
        "16864pauo1vc9nhp12": f"{URL}/status/get/prefop?id=16864pauo1vc9nhp12",
    }
    assert one.addressed(QINIU.submit(spec({"bucket": "b", "key": "z1.x", "fops": "a"}))).url == f"{URL}/pfop"
    handle = one.handle("z1.0B")
    again = session(handle.endpoint)
    assert again.addressed(QINIU.probe("z1.0B")).url.startswith("https://z1.example.test/")


def test_a_region_without_a_url_is_refused() -> None:
    with pytest.raises(errors.InvalidInput, match="is no region's endpoint"):
        session(f"{URL},z1")
    with pytest.raises(errors.InvalidInput, match="endpoints by region"):
        open_session({"z0": URL}, wire="native", cloud=None, token=None, project=None, credentials=None, environ={})


def test_a_native_id_is_asked_for_as_this_wire_has_it() -> None:
    asked = QINIU.probe("01a2011e-d311-7b79-a179-29671652251f").url
    assert asked == "/status/get/prefop?id=z0.01a2011ed3117b79a17929671652251f"


@pytest.mark.parametrize("how", [{"environ": KEYS}, {"credentials": KeyPair(access="ak", secret="sk")}])
def test_every_request_is_signed_in_the_scheme_qiniu(how: dict[str, Any]) -> None:
    sent: Request = session(**how).addressed(QINIU.submit(spec({"bucket": "b", "key": "k", "fops": "a"})))
    headers = {name.lower().encode(): value.encode() for name, value in sent.headers.items()} | {b"host": b"api.example.test"}
    claim = signing.read_claim(sent.headers["Authorization"])
    assert (claim.scheme, claim.access) == ("Qiniu", "ak")
    assert "X-Qiniu-Date" in sent.headers
    assert signing.verify(claim, signing.Message("POST", b"/pfop", b"", headers, sent.body), "sk")


def test_half_a_pair_of_keys_is_refused_and_no_repr_has_the_secret() -> None:
    with pytest.raises(errors.InvalidInput, match="QINIU_SECRET_KEY is not set"):
        qiniu_from_environment({"QINIU_ACCESS_KEY": "ak"})
    assert qiniu_from_environment({}) is None
    assert repr(QiniuKeys(access="ak", secret="very secret")) == "<QiniuKeys ak>"
