"""Volumes and a virtual machine: made by the unmodified huaweicloudsdkevs and huaweicloudsdkecs, followed to their ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from pathlib import Path
from typing import Any

from milepost.cli.demo.source import GREETING
from milepost.cli.demo.story import Server, Story, expect, in_bytes, run_milepost
from milepost.cli.exits import Exit
from milepost.cli.show import duration
from milepost.errors import InvalidInput

PROJECT = "default"
COUNT, SIZE_GIB = 4, 10
LIMIT_S = 180.0  # of each wait
FLAVOR = "t6.nano.1"
WIRE = ("--wire", "huawei-evs", "--project", PROJECT)


class Compute:
    """A batch of volumes with a sub-job each; then, where QEMU is installed, a server that boots the imported image."""

    def __init__(self, story: Story, server: Server, folder: Path) -> None:
        self.story, self.server, self.data = story, server, folder / "data"

    def run(self, image_id: str, *, boots: bool) -> None:
        """`boots`: the image is the demo's own, which says a sentence when it boots."""
        evs, ecs = _load_sdks()
        self._volumes(evs)
        if _has_qemu():
            self._machine(ecs, image_id, boots)
        else:
            self.story.step("A virtual machine from the imported image")
            self.story.say("left out: qemu-system-x86_64 is not installed (Debian: apt install qemu-system-x86)")

    def _sdk(self, client: Any) -> Any:
        from huaweicloudsdkcore.auth.credentials import BasicCredentials

        credentials = BasicCredentials("ANY", "any", PROJECT)  # without auth, any key pair is good
        return client.new_builder().with_credentials(credentials).with_endpoint(self.server.url).build()

    # --- volumes -------------------------------------------------------------------------------------------------------

    def _volumes(self, evs: Any) -> None:
        story = self.story
        story.step(f"{COUNT} volumes by the unmodified huaweicloudsdkevs: one job, a sub-job for each")
        sdk = self._sdk(evs.EvsClient)
        story.code(f"sdk.create_volume(CreateVolumeRequest(… CreateVolumeOption(name='disk', size={SIZE_GIB}, count={COUNT}) …))")
        option = evs.CreateVolumeOption(name="disk", size=SIZE_GIB, count=COUNT, volume_type="SSD", availability_zone="az-1")
        made = sdk.create_volume(evs.CreateVolumeRequest(body=evs.CreateVolumeRequestBody(volume=option)))
        story.code(f"milepost wait {made.job_id} {' '.join(WIRE)}")
        code = run_milepost(self.server, "wait", made.job_id, *WIRE, "--timeout", f"{LIMIT_S:g}")
        expect(code == Exit.DONE, f"the wait ended with exit code {code}")
        job = sdk.show_job(evs.ShowJobRequest(job_id=made.job_id))
        expect([sub.entities.volume_id for sub in job.entities.sub_jobs] == made.volume_ids, "a sub-job has another volume")
        story.seen(f"{job.job_type} {job.status}; its sub-jobs: " + ", ".join(one.entities.name for one in job.entities.sub_jobs))
        files = [next((self.data / "volumes").glob(f"{one}.*")) for one in made.volume_ids]
        sizes = [(file.stat().st_size, file.stat().st_blocks * 512) for file in files]
        story.seen(f"each is a disk image of {in_bytes(sizes[0][0])} that takes {in_bytes(sizes[0][1])} of the disk")
        larger = evs.ResizeVolumeRequestBody(os_extend=evs.OsExtend(new_size=2 * SIZE_GIB))
        extended = sdk.resize_volume(evs.ResizeVolumeRequest(volume_id=made.volume_ids[0], body=larger))
        self._follow(sdk, evs, extended.job_id)
        story.seen(f"the first one was extended: {in_bytes(files[0].stat().st_size)}")
        for volume_id in made.volume_ids:
            self._follow(sdk, evs, sdk.delete_volume(evs.DeleteVolumeRequest(volume_id=volume_id)).job_id)
        expect(not any(file.exists() for file in files), "a deleted volume left its file")
        story.seen("all were deleted; no file is left")

    # --- a machine -----------------------------------------------------------------------------------------------------

    def _machine(self, ecs: Any, image_id: str, boots: bool) -> None:
        story = self.story
        story.step("A virtual machine from the imported image, by the unmodified huaweicloudsdkecs")
        sdk = self._sdk(ecs.EcsClient)
        story.code(f"sdk.create_servers(CreateServersRequest(… image_ref='{image_id}', flavor_ref='{FLAVOR}' …))")
        server = ecs.PrePaidServer(
            name="demo",
            image_ref=image_id,
            flavor_ref=FLAVOR,
            vpcid="11111111-0000-4000-8000-000000000001",
            nics=[ecs.PrePaidServerNic(subnet_id="11111111-0000-4000-8000-000000000002")],
            root_volume=ecs.PrePaidServerRootVolume(volumetype="SSD", size=2),
        )
        began_s = time.monotonic()
        made = sdk.create_servers(ecs.CreateServersRequest(body=ecs.CreateServersRequestBody(server=server)))
        self._follow(sdk, ecs, made.job_id)
        (server_id,) = made.server_ids
        shown = sdk.show_server(ecs.ShowServerRequest(server_id=server_id)).server
        expect(shown.status == "ACTIVE", f"the server is {shown.status}")
        took = duration(time.monotonic() - began_s)
        story.seen(f"server {shown.name} is {shown.status} after {took}, with a process of its own")
        if boots:
            said = self._console(server_id)
            expect(GREETING in said, f"the machine said {said!r}")
            story.seen(f"its serial port says: {GREETING}")
        body = ecs.DeleteServersRequestBody(servers=[ecs.ServerId(id=server_id)], delete_volume=True)
        self._follow(sdk, ecs, sdk.delete_servers(ecs.DeleteServersRequest(body=body)).job_id)
        expect(not (self.data / "servers" / server_id).exists(), "a deleted server left its folder")
        story.seen("it was stopped and deleted, with its disk")

    def _console(self, server_id: str) -> str:
        from milepost.machines import Machine, MachineError

        machine, said = Machine(self.data / "servers" / server_id), ""
        limit_s = time.monotonic() + LIMIT_S
        while GREETING not in said and time.monotonic() < limit_s:
            with contextlib.suppress(MachineError):  # too busy to answer just now
                said += asyncio.run(machine.console())
            time.sleep(0.1)
        return said

    def _follow(self, sdk: Any, api: Any, job_id: str) -> Any:
        """The job at its end, as the SDK's own users wait."""
        limit_s = time.monotonic() + LIMIT_S
        while True:
            job = sdk.show_job(api.ShowJobRequest(job_id=job_id))
            if job.status in ("SUCCESS", "FAIL"):
                break
            expect(time.monotonic() < limit_s, f"job {job_id} is still {job.status}")
            time.sleep(0.1)
        expect(job.status == "SUCCESS", f"job {job_id} failed: {json.dumps([job.error_code, job.fail_reason])}")
        return job


def end_machines(data: Path) -> None:
    """No machine goes on: they outlive the server that started them, also one that was killed."""
    if _has_qemu():
        from milepost.machines import list_machines

        for machine in list_machines(data / "servers"):
            asyncio.run(machine.kill())


def _load_sdks() -> tuple[Any, Any]:
    """Errors: InvalidInput when one is not installed."""
    try:
        import huaweicloudsdkecs.v2 as ecs
        import huaweicloudsdkevs.v2 as evs
    except ModuleNotFoundError as error:
        raise InvalidInput(
            f"the demo makes volumes through Huawei Cloud's SDKs, and {error.name} is not installed",
            hint="pip install huaweicloudsdkevs huaweicloudsdkecs",
        ) from None
    return evs, ecs


def _has_qemu() -> bool:
    try:
        from milepost.machines import QemuMissing, check_installed
    except ModuleNotFoundError:
        return False
    try:
        check_installed()
    except QemuMissing:
        return False
    return True
