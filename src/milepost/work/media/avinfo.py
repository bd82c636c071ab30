"""`avinfo`: what a media file holds, as ffprobe tells it, without the place where the file is.

Source: qiniu/developer.qiniu.com docs/v6/api/reference/fop/av/avinfo.md.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from milepost.work.media.av import ask_ffprobe, read_media
from milepost.work.media.commands import BadCommand, Command, Output, Tools, register
from milepost.work.media.grammar import Arguments, shown


class AvInfo(msgspec.Struct, frozen=True):
    """It takes no arguments."""


def parse_avinfo(args: list[str]) -> AvInfo:
    """Errors: BadCommand."""
    given = Arguments("avinfo", args)
    if given:
        raise BadCommand(f"avinfo takes no arguments, got {shown(given.next('it'))}")
    return AvInfo()


async def run_avinfo(_spec: AvInfo, source: Path, _out: Path, tools: Tools) -> Output:
    """Errors: FopFailed for what is no media."""
    answer = await ask_ffprobe(source, tools)
    read_media(answer)
    answer.get("format", {}).pop("filename", None)
    return Output.info({"streams": answer.get("streams", []), "format": answer.get("format", {})})


register(Command(name="avinfo", makes="info", parse=parse_avinfo, run=run_avinfo))

__all__ = ["AvInfo", "parse_avinfo", "run_avinfo"]
