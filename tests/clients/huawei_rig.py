"""Huawei Cloud's SDKs against the running server: credentials, clients, and one wait for jobs."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Any

import pytest
from client_rig import Running

core = pytest.importorskip("huaweicloudsdkcore")

WAIT_S = 60.0
POLL_S = 0.05


def fresh(name: str) -> str:
    return f"{name}-{uuid.uuid4().hex[:8]}"


def run(coroutine: Any) -> Any:
    """What only the server can do: its store takes calls from any loop of the process."""
    return asyncio.run(coroutine)


class Keys:
    """An access key of a user in a project; without auth any pair does."""

    def __init__(self, server: Running, project: str = "demo", user: str = "member") -> None:
        if server.auth == "none":
            self.access, self.secret, self.project = "ANY", "any", project
            return
        key = run(_key(server, project, user))
        self.access, self.secret, self.project = key.id, key.secret, key.project


async def _key(server: Running, project: str, user: str) -> Any:
    return await server.system.identities.create_access_key(user, project)


def client(cls: Any, server: Running, keys: Keys, *, secret: str | None = None, project: str | None = None) -> Any:
    """The SDK's client, pointed here: `with_endpoint` and a project id make no call of discovery."""
    from huaweicloudsdkcore.auth.credentials import BasicCredentials

    credentials = BasicCredentials(keys.access, secret or keys.secret, project or keys.project)
    return cls.new_builder().with_credentials(credentials).with_endpoint(server.url).build()


def wait(sdk: Any, show: Any, job_id: str) -> Any:
    """The job at its end, as the SDK's own users wait: by asking again."""
    end_s = time.monotonic() + WAIT_S
    while True:
        job = sdk.show_job(show(job_id=job_id))
        if job.status in ("SUCCESS", "FAIL"):
            return job
        assert job.status in ("INIT", "RUNNING"), job
        assert not job.end_time
        assert time.monotonic() < end_s, f"the job did not end: {job}"
        time.sleep(POLL_S)


def in_another_second(call: Any) -> Any:
    """A signed request that equals one of the same second is a replay: it is refused until its date is another one."""
    from huaweicloudsdkcore.exceptions.exceptions import ClientRequestException

    end_s = time.monotonic() + 60
    while True:
        try:
            return call()
        except ClientRequestException as error:
            if error.error_code != "APIGW.0301" or time.monotonic() > end_s:
                raise
            time.sleep(0.1)
