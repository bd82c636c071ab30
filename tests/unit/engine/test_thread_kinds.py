"""What a plain function in a thread can do beside its work."""

from __future__ import annotations

import milepost
from milepost.engine.kinds import Kinds
from milepost.testing import serving_in_thread


def test_a_thread_stores_objects_and_resources_by_blocking_on_the_loop() -> None:
    kinds = Kinds()

    @kinds.kind("report")
    def report(job: milepost.RunningInThread) -> dict[str, int | None]:
        file = job.scratch / "report.csv"
        file.write_text("a,b\n1,2\n")
        key = f"reports/{job.id}"
        job.block_on(job.objects.put_file(key, file))
        made = milepost.Resource(
            type="report", id=job.id, project=job.job.project, doc=b"{}", created_us=0, updated_us=0, version=0
        )
        stored = job.block_on(job.resources.put(made, if_version=0))
        return {"size": job.block_on(job.objects.size_bytes(key)), "version": stored.version}

    with serving_in_thread(kinds) as server, milepost.Client(server.url) as client:
        assert client.submit("report").wait(timeout_s=60).result == {"size": 8, "version": 1}
