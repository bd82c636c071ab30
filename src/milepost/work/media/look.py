"""What a file that was just uploaded holds, for the magic variables of an upload's answer: imageInfo, exif, imageAve, avinfo.

Rules
1. The same limits as for commands of a job; what cannot be answered is not there, and never a failure of the upload.
2. An upload waits for it, so it does not queue behind transcodes, and its time is bounded.
Source: qiniu/developer.qiniu.com docs/v6/api/reference/kodo vars.md.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from milepost import RetryableError
from milepost.work.media import avinfo, pictures  # noqa: F401  (they register commands)
from milepost.work.media.commands import COMMANDS, FopFailed, Origin, Target
from milepost.work.media.tools import LocalTools, workshop
from milepost.work.threads import in_thread

if TYPE_CHECKING:
    from milepost.settings import Settings

LOOKS = ("imageInfo", "exif", "imageAve", "avinfo")
LOOK_S = 30.0


async def look(path: Path, asked: frozenset[str], settings: Settings) -> dict[str, Any]:
    """The answers to those of `LOOKS` that were asked for and have one."""
    answers: dict[str, Any] = {}
    wanted = [name for name in LOOKS if name in asked]
    if not wanted:
        return answers
    with tempfile.TemporaryDirectory(prefix="milepost-", ignore_cleanup_errors=True) as folder:
        origin = Origin(bucket="", key="", hash="", size_bytes=(await in_thread(path.stat)).st_size, mime_type="")
        tools = LocalTools(
            settings,
            workshop(settings).looks,
            origin=origin,
            target=Target(bucket="", key=None),
            mime_type="",
            folder=Path(folder),
        )
        try:
            async with asyncio.timeout(LOOK_S):
                for name in wanted:
                    answer = await _ask(name, path, tools)
                    if answer is not None:
                        answers[name] = answer
        except TimeoutError:
            return answers
    return answers


async def _ask(name: str, path: Path, tools: LocalTools) -> Any:
    command = COMMANDS[name]
    try:
        found = (await command.run(command.parse([]), path, tools.folder / name, tools)).result
    except (FopFailed, RetryableError):
        return None
    return by_sort(found) if name == "avinfo" else found


def by_sort(found: dict[str, Any]) -> dict[str, Any]:
    """In a variable the first stream of each sort has its sort's name."""
    streams = found["streams"]
    first = {sort: next((one for one in streams if one.get("codec_type") == sort), None) for sort in ("audio", "video")}
    return {**first, "format": found["format"]}


__all__ = ["LOOKS", "look"]
