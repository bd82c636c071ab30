"""Every setting, once: one frozen `Settings`, read from the environment and the command line at start.

Each field has its unit in its name and its meaning in its metadata; `MILEPOST_<FIELD>` sets it.
`docs/reference/settings.md` is held against this file by a test.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

import msgspec

from milepost.errors import InvalidInput

# What the clients, the commands and the tests read besides the settings.
OTHER_VARIABLES = frozenset(
    f"MILEPOST_{name}" for name in ("URL", "TOKEN", "PROJECT", "LIMIT", "HISTORY", "ACCESS_KEY", "SECRET_KEY", "SECRET", "FAULT")
)


def about(description: str, **limits: Any) -> msgspec.Meta:
    """A setting's meaning, for the reference, `milepost doctor` and errors."""
    return msgspec.Meta(description=description, **limits)


def processors() -> int:
    """As many as this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Read once, passed down, never changed."""

    # server
    host: Annotated[str, about("address to listen on")] = "127.0.0.1"
    port: Annotated[int, about("TCP port to listen on; 0 takes a free one", ge=0, le=65535)] = 8080
    data: Annotated[str, about("folder of the database, objects and scratch files")] = "milepost-data"
    auth: Annotated[Literal["none", "required"], about("none is allowed on loopback only")] = "none"
    public_url: Annotated[str | None, about("URL that clients reach this server by; None: from the request's Host")] = None
    log_format: Annotated[Literal["auto", "text", "json"], about("auto: text on a terminal, JSON lines elsewhere")] = "auto"
    log_level: Annotated[Literal["debug", "info", "warning", "error"], about("lowest level that is logged")] = "info"

    # limits of requests
    body_bytes_max: Annotated[int, about("largest request body of the native API", ge=1024)] = 1 << 20
    body_s_max: Annotated[float, about("longest time that a request body may take to come, seconds", gt=0)] = 60.0
    input_bytes_max: Annotated[int, about("largest input of one job, as JSON text", ge=64)] = 256 << 10
    result_bytes_max: Annotated[int, about("largest result of one job, as JSON text", ge=64)] = 256 << 10
    batch_max: Annotated[int, about("most jobs in one batch submit", ge=1)] = 1000
    page_max: Annotated[int, about("most jobs on one list page", ge=1)] = 1000
    page_default: Annotated[int, about("jobs on a list page when the request does not say", ge=1)] = 100
    labels_max: Annotated[int, about("most labels of one job", ge=0)] = 32
    label_chars_max: Annotated[int, about("longest label key or value, characters", ge=1)] = 255
    name_chars_max: Annotated[int, about("longest kind, queue or idempotency key, characters", ge=1)] = 255
    sub_jobs_max: Annotated[int, about("most sub-jobs of one parent", ge=1)] = 10_000
    attempts_limit: Annotated[int, about("most attempts a submission may ask for", ge=1)] = 100
    rate_per_s: Annotated[float, about("requests a second and project; 0: no limit", ge=0)] = 0.0
    rate_burst: Annotated[int, about("requests a project may send at once above its rate", ge=1)] = 100
    streams_max: Annotated[int, about("most open event streams and long polls, all projects together", ge=1)] = 1000
    stream_stuck_s: Annotated[
        float, about("how long the reader of an event stream may take nothing before it is cut off; it can resume, seconds", gt=0)
    ] = 60.0
    streams_project_max: Annotated[int, about("most open event streams and long polls of one project", ge=1)] = 500
    wait_s_max: Annotated[float, about("longest long poll, seconds", ge=0)] = 60.0

    # engine
    lease_s: Annotated[float, about("a worker that did not renew for so long is dead, seconds", gt=0)] = 30.0
    heartbeat_s: Annotated[float, about("how often a worker renews its lease, seconds; at most a third of lease_s", gt=0)] = 5.0
    rescue_every_s: Annotated[float, about("how often expired leases are looked for, seconds", gt=0)] = 5.0
    claim_poll_s: Annotated[float, about("how often a queue is looked at when no hint came, seconds", gt=0)] = 5.0
    prune_every_s: Annotated[float, about("how often expired jobs are removed, seconds", gt=0)] = 60.0
    crashes_max: Annotated[int, about("a job under which so many workers died is failed as poison", ge=1)] = 3
    stop_grace_s: Annotated[float, about("how long running jobs may go on at a stop, seconds", ge=0)] = 20.0
    queue_limit: Annotated[int, about("concurrent jobs of a queue that has no limit of its own, each process", ge=1)] = 100
    backoff_s: Annotated[float, about("pause after the first failed attempt, seconds; doubles each time", gt=0)] = 1.0
    backoff_s_max: Annotated[float, about("longest pause between attempts, seconds", gt=0)] = 600.0
    progress_every_s: Annotated[float, about("least time between two stored progress reports of a job, seconds", ge=0)] = 1.0
    threads_max: Annotated[int, about("threads for plain functions", ge=1)] = 32

    # retention
    keep_succeeded_s: Annotated[float, about("how long a succeeded job is kept, seconds", gt=0)] = 172_800.0
    keep_failed_s: Annotated[float, about("how long a failed job is kept, seconds", gt=0)] = 172_800.0
    keep_cancelled_s: Annotated[float, about("how long a cancelled job is kept, seconds", gt=0)] = 172_800.0
    keep_tombstone_s: Annotated[float, about("how long an expired id answers 410 with its final state, seconds", gt=0)] = (
        2_592_000.0
    )
    keep_deliveries_s: Annotated[float, about("how long an ended callback delivery stays in the log, seconds", gt=0)] = 604_800.0

    # callbacks
    callback_attempts_max: Annotated[int, about("tries of one callback before it is given up", ge=1)] = 12
    callback_backoff_s: Annotated[float, about("pause after the first failed try, seconds; doubles each time", gt=0)] = 1.0
    callback_backoff_s_max: Annotated[float, about("longest pause between two tries, seconds", gt=0)] = 3600.0
    callback_timeout_s: Annotated[float, about("longest one try may take, seconds", gt=0)] = 15.0
    callback_concurrency: Annotated[int, about("callbacks sent at the same time", ge=1)] = 32
    callback_receiver_max: Annotated[
        int, about("callbacks sent at the same time to one subscription or, of jobs' own callbacks, to one origin", ge=1)
    ] = 8
    callbacks_job_max: Annotated[int, about("callbacks of one job that tell of anything but its end", ge=0)] = 1000
    subscriptions_max: Annotated[int, about("subscriptions of one project", ge=0)] = 50
    subscription_pending_max: Annotated[
        int, about("deliveries that one subscription has waiting; beyond that it lags behind, and loses nothing", ge=1)
    ] = 1000
    subscription_log_max: Annotated[int, about("ended deliveries in the log of one subscription", ge=1)] = 10_000
    subscription_given_up_max: Annotated[int, about("deliveries given up in a row before a subscription is paused", ge=1)] = 20
    subscription_secret_overlap_s: Annotated[
        float, about("how long a replaced secret of a subscription signs beside the new one, seconds", ge=0)
    ] = 86_400.0

    # outgoing requests of callbacks and fetches
    egress_private: Annotated[
        bool | None,
        about(
            "allow loopback and private addresses, never metadata services; None: loopback only, and only with auth none on it"
        ),
    ] = None
    egress_ports: Annotated[str, about("ports that fetched URLs may name, comma-separated; empty: all")] = ""

    # identity
    token_s: Annotated[float, about("life of a token, seconds", gt=0)] = 86_400.0
    region: Annotated[str, about("region named in the service catalog")] = "RegionOne"
    account: Annotated[str | None, about("name of the domain, as Huawei Cloud's account name; None: Default alone")] = None
    signature_window_s: Annotated[float, about("how far a signed request's date may be from the server's, seconds", gt=0)] = 900.0
    signature_once: Annotated[bool, about("refuse a signature that was used before to change something")] = True
    signature_host_required: Annotated[bool, about("refuse signatures that do not cover Host; golangsdk's do not")] = False

    # tracker
    secret_file: Annotated[
        str | None, about("file with the keys that credentials are kept with, the sealing one first; None: MILEPOST_SECRET")
    ] = None
    track_concurrency: Annotated[int, about("tracked jobs that are asked about at the same time", ge=1)] = 200
    track_first_s: Annotated[float, about("shortest pause between two questions about a tracked job, seconds", gt=0)] = 1.0
    track_cap_s: Annotated[float, about("longest pause that is chosen here, seconds", gt=0)] = 120.0
    track_rate_per_s: Annotated[float, about("requests a second to one endpoint in one project's name", gt=0)] = 10.0
    track_timeout_s: Annotated[float, about("longest time of one request about tracked jobs, seconds", gt=0)] = 30.0
    track_vanished_s: Annotated[
        float, about("how long a cloud may say that it knows no such job before the tracked job fails as vanished, seconds", ge=0)
    ] = 600.0
    track_refused_s: Annotated[float, about("pause after a cloud refused the credentials, seconds", gt=0)] = 300.0

    # images
    tasks_admin_only: Annotated[bool, about("the image-task API needs the admin role, as in Glance")] = True
    task_keep_h: Annotated[float, about("how long an ended image task is kept, hours", gt=0)] = 48.0
    image_bytes_max: Annotated[int, about("largest image file that is fetched or stored", ge=1)] = 1 << 40
    image_virtual_bytes_max: Annotated[int, about("largest virtual size of an image", ge=1)] = 1 << 42
    image_concurrency: Annotated[int, about("imports at the same time", ge=1)] = 4
    objects_url: Annotated[
        str | None, about("object storage URL (file:///… or s3://…); None: the folder objects/ under data")
    ] = None
    convert_memory_bytes: Annotated[int, about("address space of one image conversion", ge=1 << 26)] = 2 << 30
    convert_cpu_s: Annotated[int, about("processor time of one image conversion, seconds", ge=1)] = 3600

    # buckets
    buckets_max: Annotated[int, about("most buckets of one project", ge=0)] = 500
    object_bytes_max: Annotated[int, about("largest object that is uploaded or fetched", ge=1)] = 1 << 40
    upload_s_max: Annotated[float, about("longest time that one upload request may take, seconds", gt=0)] = 43_200.0
    upload_keep_s: Annotated[float, about("how long a resumable upload may stay unfinished, seconds", gt=0)] = 604_800.0
    uploads_max: Annotated[int, about("most unfinished resumable uploads of one project", ge=1)] = 1000
    objects_domain: Annotated[
        str, about("domain whose first label is a bucket in download URLs: media.objects.localhost; empty: none")
    ] = "objects.localhost"

    prefop_open: Annotated[bool, about("a persistentId alone shows its status, as at Qiniu; false: credentials are needed")] = (
        True
    )

    # volumes
    zones: Annotated[str, about("availability zones, comma-separated; the first is the default; empty: any name")] = "az-1"
    volumes_max: Annotated[int, about("most volumes of one project, those on order included", ge=0)] = 400
    volumes_gib_max: Annotated[int, about("most GiB of all volumes of one project together", ge=0)] = 32_768
    volume_concurrency: Annotated[int, about("volumes made, extended or wiped at the same time", ge=1)] = 8

    # servers
    servers_max: Annotated[int, about("most servers of one project, those on order included", ge=0)] = 100
    server_vcpus_max: Annotated[int, about("most vCPUs of all servers of one project together", ge=0)] = 200
    server_ram_mib_max: Annotated[int, about("most MiB of memory of all servers of one project together", ge=0)] = 262_144
    server_concurrency: Annotated[int, about("servers made, started, stopped or changed at the same time", ge=1)] = 16
    server_stop_s: Annotated[float, about("how long a guest may take to shut down when asked to, seconds", gt=0)] = 60.0
    server_network: Annotated[
        Literal["isolated", "nat"], about("isolated: guests reach nothing; nat: whatever this host reaches, itself included")
    ] = "isolated"
    server_accel: Annotated[Literal["auto", "kvm", "tcg"], about("auto: KVM where it really works, else emulation: tcg")] = "auto"

    # media
    media_concurrency: Annotated[int, about("media commands that run at the same time; 0: as many as processors", ge=0)] = 0
    media_wall_s: Annotated[float, about("longest time of one media command, seconds", gt=0)] = 3600.0
    media_file_bytes_max: Annotated[int, about("largest file that a media command may write", ge=1 << 20)] = 8 << 30
    media_fetch_bytes_max: Annotated[int, about("largest file that a media command may fetch from a URL", ge=1024)] = 512 << 20
    picture_bytes_max: Annotated[int, about("largest file of a picture that is read", ge=1024)] = 512 << 20
    picture_side_max: Annotated[int, about("longest side of a picture that is read, pixels", ge=1)] = 30_000
    picture_pixels_max: Annotated[int, about("most pixels of a picture that is read, all frames together", ge=1)] = 150_000_000
    picture_frames_max: Annotated[int, about("most frames of an animation that is read", ge=1)] = 500
    picture_memory_bytes: Annotated[int, about("address space of one picture command", ge=1 << 28)] = 3 << 30
    picture_cpu_s: Annotated[int, about("processor time of one picture command, seconds", ge=1)] = 120
    av_memory_bytes: Annotated[int, about("address space of one ffmpeg", ge=1 << 28)] = 4 << 30
    av_cpu_s: Annotated[int, about("processor time of one ffmpeg, all its threads together, seconds", ge=1)] = 14_400
    av_pixels_max: Annotated[int, about("most pixels of one picture of a video that is read", ge=1)] = 8192 * 4320
    mkzip_files_max: Annotated[int, about("most files that mkzip packs into one archive", ge=1)] = 3000
    mkzip_bytes_max: Annotated[int, about("most bytes of all files that mkzip packs, or concat joins, together", ge=1)] = 8 << 30

    def __post_init__(self) -> None:
        if self.heartbeat_s * 3 > self.lease_s:
            raise InvalidInput(
                f"lease_s is {self.lease_s:g} and heartbeat_s {self.heartbeat_s:g}: a lease must outlive three heartbeats",
                path="$.lease_s",
                hint=f"set MILEPOST_LEASE_S to at least {self.heartbeat_s * 3:g}",
            )
        if self.public_url is not None and not _is_base_url(self.public_url):
            raise InvalidInput(
                f"public_url is {self.public_url[:200]!r}; it is a URL without query, as https://jobs.example.com",
                path="$.public_url",
            )

    @property
    def media_places(self) -> int:
        """How many media commands run at the same time."""
        return self.media_concurrency or processors()

    @property
    def data_dir(self) -> Path:
        return Path(self.data).resolve()

    @property
    def zone_names(self) -> tuple[str, ...]:
        return tuple(name for zone in self.zones.split(",") if (name := zone.strip()))

    @classmethod
    def read(cls, environ: Mapping[str, str] | None = None, **given: Any) -> Settings:
        """The settings from `MILEPOST_*` variables, overridden by the values given (None: not given).

        Errors: InvalidInput naming the variable or option and what it takes.
        """
        environ = os.environ if environ is None else environ
        raw: dict[str, Any] = {}
        for field in cls.__struct_fields__:
            name = f"MILEPOST_{field.upper()}"
            if environ.get(name):
                raw[field] = environ[name]
        raw.update({key: value for key, value in given.items() if value is not None})
        try:
            return msgspec.convert(raw, cls, strict=False)
        except msgspec.ValidationError as error:
            path = str(error).rpartition("`")[0].rpartition("`")[2] or "$"
            raise InvalidInput(f"a setting is wrong: {error}", path=path, hint=_hint(path.removeprefix("$."), given)) from error


def unknown_variables(environ: Mapping[str, str]) -> dict[str, str | None]:
    """`MILEPOST_*` variables that nothing reads, most likely misspelt, each with the name that was perhaps meant."""
    known = {f"MILEPOST_{field.upper()}" for field in Settings.__struct_fields__} | OTHER_VARIABLES
    unknown = sorted(name for name in environ if name.startswith("MILEPOST_") and name not in known)
    return {name: next(iter(difflib.get_close_matches(name, known, 1, 0.75)), None) for name in unknown}


def _is_base_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return (
            parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and not (parts.query or parts.fragment)
        )
    except ValueError:
        return False


def _hint(field: str, given: Mapping[str, Any]) -> str | None:
    """Where the wrong value came from, and what the setting is."""
    kind = get_type_hints(Settings, include_extras=True).get(field)
    if kind is None:
        return None
    place = f"--{field.replace('_', '-')}" if given.get(field) is not None else f"MILEPOST_{field.upper()}"
    words = sorted(map(str, get_args(get_args(kind)[0]))) if get_origin(get_args(kind)[0]) is Literal else []
    meaning = next(one.description for one in get_args(kind) if isinstance(one, msgspec.Meta))
    return f"{place}: {meaning}" + (f"; one of {', '.join(words)}" if words else "")
