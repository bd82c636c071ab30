"""`animate/duration/<1/100 s>[/merge/key/<base64 of a key>/key/…][/effect/<0|1>]`: pictures one after the other, as a GIF.

Rules
1. The source comes first, then the objects of its bucket that are named, in their order; `effect/1` turns it round.
2. All have one size; it plays for ever.

Source: qiniu/developer.qiniu.com dora/5448 (animate).
"""

from __future__ import annotations

from pathlib import Path

from milepost.work.media.commands import BadCommand, Command, FopFailed, Output, Tools, register
from milepost.work.media.grammar import Arguments, decode_text, integer, one_of
from milepost.work.media.spec import Animate, Done, PictureLimits, Work

FRAMES_MAX = 20
DURATION_MAX = 6000  # hundredths of a second


def parse_animate(args: list[str]) -> Animate:
    """Errors: BadCommand."""
    given = Arguments("animate", args)
    duration, backwards, keys = None, False, list[str]()
    while given:
        match key := given.next("a parameter"):
            case "merge":
                if given.peek() != "key":
                    raise BadCommand("animate: merge is followed by key")
            case "duration":
                duration = integer(given.next("the value of duration"), "animate: duration", 1, DURATION_MAX)
            case "key":
                keys.append(decode_text(given.next("the value of key"), "animate: key"))
            case "effect":
                backwards = one_of(given.next("the value of effect"), "animate: effect", ("0", "1")) == "1"
            case _:
                raise given.unknown(key)
    if duration is None:
        raise BadCommand("animate: duration is missing")
    if len(keys) >= FRAMES_MAX or not all(keys):
        raise BadCommand(f"animate: at most {FRAMES_MAX} pictures, each by the base64 of its key")
    return Animate(keys=tuple(keys), delay_ms=duration * 10, backwards=backwards)


async def run_animate(spec: Animate, source: Path, out: Path, tools: Tools) -> Output:
    """Errors: FopFailed, also when a picture is too large or has another size than the first."""
    files = [source, *[await tools.fetch(f"kodo://{tools.origin.bucket}/{key}") for key in spec.keys]]
    most = tools.settings.picture_bytes_max
    for number, path in enumerate(files, 1):
        if path.stat().st_size > most:
            raise FopFailed(f"image too large: picture {number} has more than {most} bytes")
    work = Work(
        source=str(source),
        out=str(out),
        spec=spec,
        limits=PictureLimits.from_settings(tools.settings),
        marks=[str(path) for path in files[1:]],
        temporary=str(tools.folder),
    )
    done = await tools.fork("milepost.work.media.vips:work", work, Done)
    assert done.mime_type is not None
    return Output.object(out, done.mime_type)


register(Command(name="animate", makes="object", parse=parse_animate, run=run_animate))

__all__ = ["parse_animate", "run_animate"]
