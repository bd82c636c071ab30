"""Golden exchanges of Glance's task API.

Source: what Glance 33 answers, and openstack/glance glance/api/v2/tasks.py; gophercloud openstack/image/v2/tasks.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import msgspec
import pytest
from glance_server import AT_US, HOST, INPUT, KEEP_US, OTHER, OWNER, SOURCE, Server

from milepost.errors import MilepostError, StoreUnavailable, Unreachable
from milepost.image import Image
from milepost.job import Callback, ProjectId, Submission

HTML = (
    "<html>\n <head>\n  <title>{status}</title>\n </head>\n <body>\n  <h1>{status}</h1>\n  {message}<br /><br />\n\n\n\n"
    " </body>\n</html>"
)
NOT_ADMIN = "You are not authorized to complete tasks_api_access action."
NO_DELETE = (
    "This operation is currently not permitted on Glance Tasks. They are auto deleted after reaching the time based on their "
    "expires_at property."
)
JSON = {"accept": "application/json"}
PLAIN = {"accept": "text/plain"}


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = await Server().open()
    yield made
    await made.store.close()


def plain(status: str, message: str) -> str:
    return f"{status}\n\n{message}\n\n   "


async def refused(server: Server, method: str, url: str, body: Any = b"", **more: Any) -> tuple[int, str]:
    answer = await server.ask(method, url, body, headers=JSON, **more)
    message: str = answer.json["message"]
    return answer.status, message.removesuffix("<br /><br />\n\n\n")


# --- create ---------------------------------------------------------------------------------------------------------


async def test_create_answers_201_with_the_whole_task_and_an_absolute_location(server: Server) -> None:
    request_id = "req-0f9c1b7e-1111-4c8e-9b8a-7d9f6f4d2a10"
    answer = await server.ask(
        "POST", "/v2/tasks", {"type": "import", "input": INPUT}, headers={"x-openstack-request-id": request_id}
    )
    task_id = answer.json["id"]

    assert answer.status == 201
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["location"] == f"http://{HOST}/v2/tasks/{task_id}"
    assert answer.headers["x-openstack-request-id"] == request_id
    assert str(UUID(task_id)) == task_id
    assert answer.text == (
        f'{{"id":"{task_id}","input":{msgspec.json.encode(INPUT).decode()},"type":"import","status":"pending",'
        f'"owner":"{OWNER}","message":"","result":null,"created_at":"2026-03-04T05:06:07Z","updated_at":"2026-03-04T05:06:07Z",'
        f'"self":"/v2/tasks/{task_id}","schema":"/v2/schemas/task","request_id":"{request_id}","user_id":"a1b2c3"}}'
    )


async def test_the_location_names_v2_whatever_version_the_client_used(server: Server) -> None:
    answer = await server.ask("POST", "/v2.9/tasks", {"type": "import", "input": INPUT})
    assert answer.headers["location"] == f"http://{HOST}/v2/tasks/{answer.json['id']}"


async def test_create_ignores_the_content_type_and_what_the_server_decides(server: Server) -> None:
    body = {"type": "import", "input": INPUT, "status": "success", "owner": "me", "message": "x", "result": None}
    answer = await server.ask("POST", "/v2/tasks", body, headers={"content-type": "text/nonsense"})
    assert (answer.status, answer.json["status"], answer.json["owner"]) == (201, "pending", OWNER)


SCHEMA = "Provided object does not match schema 'task': "


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "Body expected in request."),
        (b"{", "Malformed JSON in request body."),
        (b'{"type": "\xff"}', "Malformed JSON in request body."),
        (b"5", "Unexpected body type. Expected list/dict."),
        (b'"x"', "Unexpected body type. Expected list/dict."),
        (b"null", "Unexpected body type. Expected list/dict."),
        (b"{}", "Task 'type' is required"),
        (b"[]", "Task 'type' is required"),
        (b'{"input":{}}', "Task 'type' is required"),
        (b'{"type":"import"}', "Task 'input' is required"),
        ({"type": "import", "input": {}}, "Invalid location: None"),
        ({"type": "import", "input": None}, "Invalid location: None"),
        ({"type": "import", "input": {"import_from": None}}, "Invalid location: None"),
        ({"type": "import", "input": {"import_from": ""}}, "Invalid location: "),
        (
            {"type": "import", "input": {"import_from": "file:///etc/passwd"}},
            "File based imports are not allowed. Please use a non-local source of image data.",
        ),
        (
            {"type": "import", "input": {"import_from": "filesystem:///etc/passwd"}},
            "File based imports are not allowed. Please use a non-local source of image data.",
        ),
        *(
            (
                {"type": "import", "input": {"import_from": url}},
                "The given uri is not valid. Please specify a valid uri from the following list of supported uri "
                "['http', 'https']",
            )
            for url in ("HTTP://example.test/a", "ftp://example.test/a", "swift+http://x", "a.qcow2")
        ),
    ],
)
async def test_create_refuses_in_glances_order_and_words(server: Server, body: Any, message: str) -> None:
    assert await refused(server, "POST", "/v2/tasks", body) == (400, message)


@pytest.mark.parametrize(
    "body",
    [
        {"type": "nonsense", "input": {}},
        {"type": 5, "input": {}},
        {"type": "import", "input": []},
        {"type": "import", "input": INPUT, "extra": 1},
        {"type": "import", "input": INPUT, "status": "done"},
        {"type": "import", "input": INPUT, "message": None},
        {"type": "import", "input": INPUT, "id": "no-uuid"},
        ["type", "input"],
    ],
)
async def test_create_refuses_what_the_schema_does_not_allow(server: Server, body: Any) -> None:
    status, message = await refused(server, "POST", "/v2/tasks", body)
    assert status == 400
    assert message.startswith(SCHEMA)
    assert "Failed validating" in message


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/a",
        "http://169.254.169.254/latest/meta-data",
        "http://[::1]/a",
        "http://2130706433/a",
        "http://127.1/a",
        "http:///a",
        "http://1.1.1.1:8080/a",
    ],
)
async def test_create_refuses_a_source_that_the_guard_would_not_fetch(server: Server, url: str) -> None:
    status, message = await refused(server, "POST", "/v2/tasks", {"type": "import", "input": {**INPUT, "import_from": url}})
    assert status == 400
    assert message.startswith(f"URI for legacy import task does not pass filtering: {url} (")


@pytest.mark.parametrize(("passing", "status"), [(True, 201), (False, 400)])
async def test_a_name_that_does_not_resolve_is_refused_unless_the_resolver_is_away(
    server: Server, monkeypatch: pytest.MonkeyPatch, passing: bool, status: int
) -> None:
    async def resolve(url: str, policy: Any, **_: Any) -> None:
        raise Unreachable("the name does not resolve", passing=passing)

    monkeypatch.setattr("milepost.server.facades.glance.tasks.resolve_checked", resolve)
    assert (await server.ask("POST", "/v2/tasks", {"type": "import", "input": INPUT})).status == status


async def test_create_refuses_an_input_that_the_kind_does_not_take(server: Server) -> None:
    """Stricter than Glance, which accepts it and fails the task later."""
    status, message = await refused(server, "POST", "/v2/tasks", {"type": "import", "input": {"import_from": SOURCE}})
    assert status == 400
    assert "import_from_format" in message


async def test_create_refuses_a_type_that_no_kind_runs(server: Server) -> None:
    status, message = await refused(server, "POST", "/v2/tasks", {"type": "api_image_import", "input": {}})
    assert status == 400
    assert message == "Task type 'api_image_import' is not offered by this server; it offers: import, tidy"


async def test_a_kind_of_the_server_is_a_type_too(server: Server) -> None:
    answer = await server.ask("POST", "/v2/tasks", {"type": "tidy", "input": {"a": 1}})
    assert (answer.status, answer.json["type"], answer.json["input"]) == (201, "tidy", {"a": 1})
    listed = await server.ask("GET", "/v2/tasks?type=tidy")
    assert [task["id"] for task in listed.json["tasks"]] == [answer.json["id"]]


async def test_a_repeated_idempotency_key_creates_one_task(server: Server) -> None:
    headers = {"idempotency-key": "k1", **JSON}
    first = await server.ask("POST", "/v2/tasks", {"type": "import", "input": INPUT}, headers=headers)
    again = await server.ask("POST", "/v2/tasks", {"type": "import", "input": INPUT}, headers=headers)
    other = await server.ask("POST", "/v2/tasks", {"type": "import", "input": {**INPUT, "x": 1}}, headers=headers)
    assert (first.status, again.status, first.json["id"]) == (201, 201, again.json["id"])
    assert other.status == 409


async def test_a_body_above_the_limit_is_413(server: Server) -> None:
    body = b'{"type":"import","input":{"x":"' + b"x" * server.settings.body_bytes_max + b'"}}'
    status, _ = await refused(server, "POST", "/v2/tasks", body)
    assert status == 413


# --- show -----------------------------------------------------------------------------------------------------------


async def test_show_after_success_has_the_result_and_when_it_expires(server: Server) -> None:
    task_id = await server.create()
    await server.start(task_id)
    assert (await server.ask("GET", f"/v2/tasks/{task_id}")).json["status"] == "processing"

    other = await server.create()
    server.clock.at_us += 53_000_000
    await server.succeed(other, b'{"image_id":"0d9bf6f0-3c5e-4f2d-8f0c-4f1b7c1e9a02"}')
    task = (await server.ask("GET", f"/v2/tasks/{other}")).json
    assert (task["status"], task["message"]) == ("success", "")
    assert task["result"] == {"image_id": "0d9bf6f0-3c5e-4f2d-8f0c-4f1b7c1e9a02"}
    assert (task["updated_at"], task["expires_at"]) == ("2026-03-04T05:07:00Z", "2026-03-06T05:07:00Z")


async def test_show_after_failure_has_the_message_and_no_result(server: Server) -> None:
    task_id = await server.create()
    await server.fail(task_id, "the source is raw, not qcow2")
    task = (await server.ask("GET", f"/v2/tasks/{task_id}")).json
    assert (task["status"], task["message"], task["result"]) == ("failure", "the source is raw, not qcow2", None)
    assert task["expires_at"] == "2026-03-06T05:06:07Z"


async def test_a_cancelled_task_is_a_failure_with_its_reason(server: Server) -> None:
    task_id = await server.create()
    await server.store.cancel_job(task_id, project=None, reason="changed my mind", now_us=AT_US, expires_us=AT_US + KEEP_US)  # type: ignore[arg-type]
    task = (await server.ask("GET", f"/v2/tasks/{task_id}")).json
    assert (task["status"], task["result"]) == ("failure", None)
    assert "changed my mind" in task["message"]


async def test_a_running_task_says_what_it_does_in_its_message(server: Server) -> None:
    task_id = await server.create()
    await server.start(task_id, note="fetching 3 of 10 MiB")
    assert (await server.ask("GET", f"/v2/tasks/{task_id}")).json["message"] == "fetching 3 of 10 MiB"


async def test_a_job_of_another_wire_is_shown_by_its_id_as_a_task(server: Server) -> None:
    (added,) = await server.store.add_jobs(
        [Submission(kind="tidy", input=b"[1]", project=ProjectId(OWNER), callback=Callback("http://x"))], now_us=AT_US
    )
    await server.succeed(added.job.id, b"[2]")
    task = (await server.ask("GET", f"/v2/tasks/{added.job.id}")).json
    assert (task["type"], task["input"], task["result"]) == ("tidy", {"input": [1]}, {"result": [2]})
    assert "request_id" not in task
    assert (await server.ask("GET", "/v2/tasks")).json["tasks"] == []


async def test_an_unknown_id_is_404_in_each_form_of_error(server: Server) -> None:
    unknown = "11111111-2222-4333-8444-555555555555"
    message = f"Could not find task {unknown}"
    html = await server.ask("GET", f"/v2/tasks/{unknown}", headers={"accept": "*/*"})
    assert (html.status, html.headers["content-type"]) == (404, "text/html; charset=UTF-8")
    assert html.text == HTML.format(status="404 Not Found", message=message)
    json = await server.ask("GET", f"/v2/tasks/{unknown}", headers=JSON)
    assert json.headers["content-type"] == "application/json"
    assert json.text == f'{{"message":"{message}<br /><br />\\n\\n\\n","code":"404 Not Found","title":"Not Found"}}'
    for headers in (PLAIN, {}):
        text = await server.ask("GET", f"/v2/tasks/{unknown}", headers=headers)
        assert text.headers["content-type"] == "text/plain; charset=UTF-8"
        assert text.text == plain("404 Not Found", message)


async def test_upper_case_and_what_is_no_id_is_404_too(server: Server) -> None:
    task_id = await server.create()
    for name in (task_id.upper(), "zz", "%20"):
        assert (await refused(server, "GET", f"/v2/tasks/{name}"))[0] == 404


async def test_messages_are_escaped_in_html(server: Server) -> None:
    answer = await server.ask("GET", "/v2/tasks/<b>&", headers={"accept": "text/html"})
    assert "Could not find task &lt;b&gt;&amp;" in answer.text


async def test_a_task_of_another_project_is_404() -> None:
    server = await Server(tasks_admin_only=False).open()
    task_id = await server.create()
    assert (await server.ask("GET", f"/v2/tasks/{task_id}", token="member")).status == 200
    assert await refused(server, "GET", f"/v2/tasks/{task_id}", token="other") == (404, f"Could not find task {task_id}")
    assert (await server.ask("GET", "/v2/tasks", token="other")).json["tasks"] == []
    assert await refused(server, "GET", f"/v2/tasks?marker={task_id}", token="other") == (
        400,
        f"Task with the given id {task_id} was not found",
    )
    await server.store.close()


async def test_a_member_imports_for_itself_and_publishes_nothing() -> None:
    server = await Server(tasks_admin_only=False).open()

    async def create(**properties: Any) -> tuple[int, str]:
        input = {**INPUT, "image_properties": {**INPUT["image_properties"], **properties}}  # type: ignore[dict-item]
        answer = await server.ask("POST", "/v2/tasks", {"type": "import", "input": input}, token="member", headers=JSON)
        return answer.status, answer.json.get("message", "").removesuffix("<br /><br />\n\n\n")

    assert await create(owner=OWNER, visibility="private") == (201, "")
    assert await create(owner=OTHER) == (403, f"You are not permitted to create images owned by '{OTHER}'.")
    assert await create(visibility="public") == (403, "You are not authorized to complete publicize_image action.")
    await server.store.close()


async def test_without_auth_each_keeps_to_the_project_it_names() -> None:
    server = await Server(auth="none", public_url=None).open()
    own = {"host": "127.0.0.1:9292", "x-project-id": "mine"}
    answer = await server.ask("POST", "/v2/tasks", {"type": "import", "input": INPUT}, token=None, headers=own)
    assert (answer.status, answer.json["owner"]) == (201, "mine")
    url = f"/v2/tasks/{answer.json['id']}"
    assert (await server.ask("GET", url, token="anything", headers=own)).status == 200
    assert (await server.ask("GET", url, token=None, headers={"host": "127.0.0.1:9292"})).status == 404
    await server.store.close()


# --- delete and other methods ---------------------------------------------------------------------------------------


async def test_delete_is_405_whether_or_not_the_task_exists(server: Server) -> None:
    for task_id in (await server.create(), "zz"):
        answer = await server.ask("DELETE", f"/v2/tasks/{task_id}", headers=JSON)
        assert (answer.status, answer.headers["allow"]) == (405, "GET")
        assert answer.json == {"message": NO_DELETE, "code": "405 Method Not Allowed", "title": "Method Not Allowed"}
    assert (await refused(server, "DELETE", "/v2/tasks/zz", token="member")) == (403, NOT_ADMIN)


@pytest.mark.parametrize(
    ("method", "url", "allow"),
    [
        ("PUT", "/v2/tasks", "GET, POST"),
        ("PATCH", "/v2/tasks/x", "GET, DELETE"),
        ("HEAD", "/v2/tasks/x", "GET, DELETE"),
        ("OPTIONS", "/v2/tasks", "GET, POST"),
        ("POST", "/v2/schemas/task", "GET"),
    ],
)
async def test_other_methods_are_405_with_allow(server: Server, method: str, url: str, allow: str) -> None:
    answer = await server.ask(method, url, headers=JSON)
    assert (answer.status, answer.headers["allow"]) == (405, allow)
    if method != "HEAD":  # which never has a body
        assert answer.json["message"].startswith(f"The method {method} is not allowed for this resource. ")


@pytest.mark.parametrize("url", ["/v2/", "/v2/tasks/", "/v2/tasks/a/b", "/v2/schemas/nothing", "/v2/images/", "/v2.9/tasks/"])
async def test_a_route_that_glance_does_not_have_is_404(server: Server, url: str) -> None:
    assert await refused(server, "GET", url) == (404, "The resource could not be found.")


# --- who may --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", [None, "wrong"])
async def test_without_a_valid_token_it_is_401_and_no_request_id(server: Server, token: str | None) -> None:
    answer = await server.ask("GET", "/v2/tasks", token=token, headers={"accept": "*/*"})
    assert answer.status == 401
    assert "This server could not verify that you are authorized to access the document you requested." in answer.text
    assert answer.headers["www-authenticate"].startswith('Keystone uri="http://')
    assert "x-openstack-request-id" not in answer.headers


@pytest.mark.parametrize(("method", "url"), [("GET", "/v2/tasks"), ("POST", "/v2/tasks"), ("GET", "/v2/tasks/x")])
async def test_the_task_api_is_for_admins(server: Server, method: str, url: str) -> None:
    assert await refused(server, method, url, token="member") == (403, NOT_ADMIN)


async def test_an_admin_lists_all_projects_and_filters_by_owner(server: Server) -> None:
    own = await server.create()
    (added,) = await server.store.add_jobs([Submission(kind="import", project=ProjectId(OTHER))], now_us=AT_US + 1)
    listed = (await server.ask("GET", "/v2/tasks")).json["tasks"]
    assert [task["id"] for task in listed] == [added.job.id, own]
    for owner, ids in ((OWNER, [own]), (OTHER, [added.job.id]), ("nobody", []), ("", [])):
        tasks = (await server.ask("GET", f"/v2/tasks?owner={owner}")).json["tasks"]
        assert [task["id"] for task in tasks] == ids


async def test_too_many_requests_are_429_in_glances_form() -> None:
    server = await Server(rate_per_s=0.5, rate_burst=1).open()
    assert (await server.ask("GET", "/v2/tasks")).status == 200
    answer = await server.ask("GET", "/v2/tasks", headers=JSON)
    assert (answer.status, answer.headers["retry-after"]) == (429, "2")
    assert answer.json["code"] == "429 Too Many Requests"
    await server.store.close()


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (StoreUnavailable("the disk is full"), 503, "the disk is full"),
        (RuntimeError("secret"), 500, "The server has either erred or is incapable of performing the requested operation."),
        (MilepostError("secret"), 500, "The server has either erred or is incapable of performing the requested operation."),
    ],
)
async def test_an_error_of_the_server_is_told_in_glances_form(
    server: Server, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int, text: str
) -> None:
    async def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(server.store, "list_jobs", fail)
    answer = await server.ask("GET", "/v2/tasks", headers={"accept": "*/*"})
    assert (answer.status, answer.headers.get("retry-after")) == (status, "1" if status == 503 else None)
    assert text in answer.text
    assert "secret" not in answer.text
    assert answer.headers["x-openstack-request-id"]


async def test_request_ids_are_echoed_named_and_limited(server: Server) -> None:
    for given, answered in (("req-1", "req-1"), ("abc", "req-abc")):
        answer = await server.ask("GET", "/v2/tasks", headers={"x-openstack-request-id": given})
        assert answer.headers["x-openstack-request-id"] == answered
    made = (await server.ask("GET", "/v2/tasks")).headers["x-openstack-request-id"]
    assert re.fullmatch(r"req-[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}", made)
    assert (await server.ask("GET", "/v2/tasks", headers={"x-openstack-request-id": "x" * 65})).status == 431
    assert (await server.ask("GET", "/v2/tasks/x")).headers["x-openstack-request-id"].startswith("req-")


# --- list -----------------------------------------------------------------------------------------------------------


async def test_a_list_page_is_stubs_with_first_and_next(server: Server) -> None:
    task_id = await server.create()
    server.clock.at_us += 53_000_000
    await server.succeed(task_id, b"{}")
    url = "/v2/tasks?limit=1&sort_dir=asc"
    page = await server.ask("GET", url)
    assert page.text == (
        f'{{"tasks":[{{"id":"{task_id}","type":"import","status":"success","owner":"{OWNER}",'
        '"created_at":"2026-03-04T05:06:07Z","updated_at":"2026-03-04T05:07:00Z",'
        f'"self":"/v2/tasks/{task_id}","schema":"/v2/schemas/task","expires_at":"2026-03-06T05:07:00Z"}}],'
        f'"first":"{url}","schema":"/v2/schemas/tasks","next":"{url}&marker={task_id}"}}'
    )
    past = await server.ask("GET", page.json["next"])
    assert past.text == f'{{"tasks":[],"first":"{url}","schema":"/v2/schemas/tasks"}}'


async def test_first_repeats_unknown_parameters_and_the_last_of_repeated_ones(server: Server) -> None:
    await server.create()
    page = (await server.ask("GET", "/v2/tasks?limit=5&limit=%202&x=a%20b&deleted=true")).json
    assert page["first"] == "/v2/tasks?limit=+2&x=a+b&deleted=true"
    assert len(page["tasks"]) == 1
    assert (await server.ask("GET", "/v2/tasks")).json["first"] == "/v2/tasks"


async def test_next_without_parameters_is_the_marker_alone(server: Server) -> None:
    for _ in range(25):
        await server.create()
    page = (await server.ask("GET", "/v2/tasks")).json
    assert len(page["tasks"]) == 25
    assert page["next"] == f"/v2/tasks?marker={page['tasks'][-1]['id']}"


UNKNOWN = "11111111-2222-4333-8444-555555555555"


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("limit=-1", "limit param must be positive"),
        ("limit=abc", "limit param must be an integer"),
        ("limit=", "limit param must be an integer"),
        ("limit=1.5", "limit param must be an integer"),
        ("marker=zz", "Invalid marker format"),
        (f"marker={UNKNOWN}", f"Task with the given id {UNKNOWN} was not found"),
        ("marker=", "Task with the given id  was not found"),
        *((f"sort_key={key}", "Sort key supplied was not valid.") for key in ("input", "result", "message", "", "foo")),
        ("sort_dir=up", "Invalid sort direction: up"),
        ("sort_dir=", "Invalid sort direction: "),
        ("sort_dir=DESC", "Invalid sort direction: DESC"),
        ("status=done", "Invalid status value: done"),
        ("type=api_image_import", "Invalid type value: api_image_import"),
        ("type=export", "Invalid type value: export"),
    ],
)
async def test_a_list_refuses_in_glances_words(server: Server, query: str, message: str) -> None:
    assert await refused(server, "GET", f"/v2/tasks?{query}") == (400, message)


async def test_the_golden_bad_marker(server: Server) -> None:
    answer = await server.ask("GET", "/v2/tasks?marker=zz", headers=JSON)
    assert (answer.status, answer.text) == (
        400,
        '{"message":"Invalid marker format<br /><br />\\n\\n\\n","code":"400 Bad Request","title":"Bad Request"}',
    )


@pytest.mark.parametrize("query", ["limit=0", "status=", "type="])
async def test_an_empty_filter_and_limit_0_are_an_empty_page(server: Server, query: str) -> None:
    await server.create()
    page = (await server.ask("GET", f"/v2/tasks?{query}")).json
    assert page == {"tasks": [], "first": f"/v2/tasks?{query}", "schema": "/v2/schemas/tasks"}


async def test_a_limit_above_the_maximum_is_clamped(server: Server) -> None:
    await server.create()
    assert (await server.ask("GET", "/v2/tasks?limit=5000")).status == 200


async def test_filters_match_exactly(server: Server) -> None:
    ids = [await server.create() for _ in range(3)]
    await server.store.cancel_job(ids[1], project=None, reason="x", now_us=AT_US, expires_us=AT_US + KEEP_US)  # type: ignore[arg-type]
    await server.start(ids[0])  # and the other ready one
    server.clock.at_us += 1_000_000
    later = await server.create()

    async def found(query: str) -> set[str]:
        return {task["id"] for task in (await server.ask("GET", f"/v2/tasks?{query}")).json["tasks"]}

    assert await found("status=processing") == {ids[0], ids[2]}
    assert await found("status=failure") == {ids[1]}
    assert await found("status=pending") == {later}
    assert await found("status=success") == set()
    assert await found(f"id={ids[2]}") == {ids[2]}
    assert await found("created_at=2026-03-04T05:06:08Z") == {later}
    assert await found("created_at=2026-03-04T05:06:07Z&limit=2") <= set(ids)
    assert await found("type=import") == {*ids, later}
    image = Image(id="0d9bf6f0-3c5e-4f2d-8f0c-4f1b7c1e9a02", job_id=ids[1], created_us=AT_US, updated_us=AT_US, owner=OWNER)
    await server.put_image(image)
    assert await found(f"image_id={image.id}") == {ids[1]}
    assert await found("image_id=nothing") == set()


@pytest.mark.parametrize("limit", [1, 2, 3, 10])
async def test_tasks_of_one_second_are_found_however_far_they_are(
    server: Server, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr("milepost.server.facades.glance.tasks.SCAN_PAGE", 2)
    ids = [await server.create() for _ in range(3)]
    server.clock.at_us += 1_000_000
    for _ in range(5):
        await server.create()
    seen: list[str] = []
    url = f"/v2/tasks?created_at=2026-03-04T05:06:07Z&limit={limit}"
    while url:
        page = (await server.ask("GET", url)).json
        seen += [task["id"] for task in page["tasks"]]
        url = page.get("next", "")
    assert seen == ids[::-1]


@pytest.mark.parametrize(
    "key",
    ["created_at", "updated_at", "expires_at", "id", "type", "status", "owner", "image_id", "deleted", "deleted_at"],
)
@pytest.mark.parametrize("direction", ["asc", "desc"])
async def test_paging_gives_each_task_once_in_every_order_with_ties(server: Server, key: str, direction: str) -> None:
    ids = [await server.create() for _ in range(7)]
    await server.fail(ids[2], "x")  # start() leaves the others running
    seen: list[str] = []
    url = f"/v2/tasks?limit=2&sort_key={key}&sort_dir={direction}"
    pages = 0
    while url:
        page = (await server.ask("GET", url)).json
        seen += [task["id"] for task in page["tasks"]]
        url = page.get("next", "")
        pages += 1
        assert pages < 10
    assert sorted(seen) == sorted(ids)


async def test_a_list_leaves_out_expired_tasks_of_the_own_project_only(server: Server) -> None:
    own = await server.create()
    await server.fail(own, "x")
    (added,) = await server.store.add_jobs([Submission(kind="import", project=ProjectId(OTHER))], now_us=AT_US)
    await server.fail(added.job.id, "x")
    pending = await server.create()
    server.clock.at_us += KEEP_US
    listed = {task["id"] for task in (await server.ask("GET", "/v2/tasks")).json["tasks"]}
    assert listed == {added.job.id, pending}
    assert (await server.ask("GET", f"/v2/tasks/{own}")).status == 200, "show never hides an expired task"
    await server.store.prune(now_us=server.clock.at_us, keep_tombstone_s=1e6, keep_deliveries_s=1e6, limit=100)
    assert await refused(server, "GET", f"/v2/tasks/{own}") == (404, f"Could not find task {own}")


# --- versions and schemas -------------------------------------------------------------------------------------------


async def test_the_root_is_300_with_the_versions(server: Server) -> None:
    root = await server.ask("GET", "/", token=None)
    assert (root.status, root.headers["content-type"]) == (300, "application/json")
    versions = root.json["versions"]
    assert [one["status"] for one in versions] == ["CURRENT"] + ["SUPPORTED"] * (len(versions) - 1)
    assert all(one["links"] == [{"rel": "self", "href": f"http://{HOST}/v2/"}] for one in versions)
    assert versions[-1]["id"] == "v2.0"
    listed = await server.ask("GET", "/versions", token=None)
    assert (listed.status, listed.json) == (200, root.json)
    for answer in (root, listed):
        assert "x-openstack-request-id" not in answer.headers


async def test_v2_alone_redirects_to_nothing(server: Server) -> None:
    answer = await server.ask("GET", "/v2", token=None)
    assert (answer.status, answer.headers["location"]) == (302, f"http://{HOST}/v2/")
    assert answer.headers["content-type"] == "text/plain; charset=utf8"


@pytest.mark.parametrize("version", ["v2.0", "v2.1", "v2.7", "v2.9", "v2.15", "v2.17"])
async def test_every_version_that_is_listed_is_a_name_of_v2(server: Server, version: str) -> None:
    assert (await server.ask("GET", f"/{version}/tasks")).json == (await server.ask("GET", "/v2/tasks")).json


@pytest.mark.parametrize("url", ["/v1/tasks", "/v3/images/x", "/v2.99/tasks", "/v2.99", "/v2.16/images", "/v1.1/schemas/task"])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_another_version_is_300_and_not_404(server: Server, url: str, method: str) -> None:
    answer = await server.ask(method, url, token=None)
    assert answer.status == 300
    assert answer.json["versions"]


async def test_paths_of_other_wires_are_not_swallowed(server: Server) -> None:
    for url in ("/v1/project/jobs/x", "/v2/project/cloudvolumes", "/jobs/nothing-here", "/nothing"):
        answer = await server.ask("GET", url)
        assert answer.status != 300
        assert "versions" not in answer.text


async def test_the_schemas_name_the_types_and_what_is_read_only(server: Server) -> None:
    task = (await server.ask("GET", "/v2/schemas/task")).json
    assert task["name"] == "task"
    assert task["properties"]["type"]["enum"] == ["import", "api_image_import", "location_import", "tidy"]
    assert task["properties"]["status"]["enum"] == ["pending", "processing", "success", "failure"]
    assert task["properties"]["result"]["type"] == ["null", "object"]
    assert task["properties"]["self"]["readOnly"] is True
    assert not {"additionalProperties", "required"} & set(task)
    tasks = (await server.ask("GET", "/v2/schemas/tasks")).json
    assert tasks["name"] == "tasks"
    assert tasks["links"] == [{"rel": "describedby", "href": "{schema}"}]
    assert set(tasks["properties"]["tasks"]["items"]["properties"]) == {
        *("id", "type", "status", "owner", "expires_at", "created_at", "updated_at", "self", "schema")
    }


async def test_bodies_match_their_schemas(server: Server) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    task_id = await server.create()
    await server.fail(task_id, "x")
    jsonschema.validate(
        (await server.ask("GET", f"/v2/tasks/{task_id}")).json, (await server.ask("GET", "/v2/schemas/task")).json
    )
    jsonschema.validate((await server.ask("GET", "/v2/tasks")).json, (await server.ask("GET", "/v2/schemas/tasks")).json)


async def test_tasks_of_an_image_are_raw_records(server: Server) -> None:
    task_id = await server.create()
    image = Image(id="0d9bf6f0-3c5e-4f2d-8f0c-4f1b7c1e9a02", job_id=task_id, created_us=AT_US, updated_us=AT_US, owner=OWNER)
    await server.put_image(image)
    (row,) = (await server.ask("GET", f"/v2/images/{image.id}/tasks")).json["tasks"]
    assert (row["id"], row["image_id"], row["input"]) == (task_id, image.id, INPUT)
    assert (row["created_at"], row["expires_at"], row["deleted"]) == ("2026-03-04T05:06:07.123456", None, False)
    assert (await server.ask("GET", f"/v2/images/{UNKNOWN}/tasks")).status == 404
    assert await refused(server, "GET", f"/v2/images/{image.id}/tasks", token="member") == (403, NOT_ADMIN)

    await server.fail(task_id, "x")
    server.clock.at_us += KEEP_US
    await server.store.prune(now_us=server.clock.at_us, keep_tombstone_s=1e6, keep_deliveries_s=1e6, limit=100)
    assert (await server.ask("GET", f"/v2/images/{image.id}/tasks")).json == {"tasks": []}
