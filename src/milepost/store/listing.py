"""Pages of resources whose ids are paths: by the bytes of the ids, with what lies behind a delimiter folded into one entry."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from milepost.bucket import KEY_BYTES_MAX
from milepost.job import ProjectId
from milepost.store import Resource

if TYPE_CHECKING:
    from milepost.store import Store

BEHIND = "\U0010ffff" * (KEY_BYTES_MAX // 4 + 1)  # behind every id that has the same prefix


class Folded(NamedTuple):
    """A page.  `after` is where the next one begins, None when there is none."""

    found: list[Resource]
    prefixes: list[str]
    after: str | None


async def page_folded(
    store: Store, type_: str, project: ProjectId, *, prefix: str, delimiter: str, after: str | None, limit: int
) -> Folded:
    """The project's resources that begin with the prefix, behind `after`.

    Rules: `after` is an id, or a folded prefix, which is passed over whole; both kinds of entry count against the limit.
    """
    page = Folded([], [], None)
    last, behind = "", after
    if after is not None and len(after) > len(prefix) and _fold(after, prefix, delimiter) == after:
        behind = after + BEHIND
    while True:
        read = await store.page_resources(type_, prefix=prefix, after=behind, limit=limit + 1)
        for one in read:
            in_fold = bool(page.prefixes) and last == page.prefixes[-1] and one.id.startswith(last)
            if in_fold or one.project != project:
                continue
            if len(page.found) + len(page.prefixes) == limit:
                return page._replace(after=last)
            folded = _fold(one.id, prefix, delimiter)
            last = one.id if folded is None else folded
            if folded is None:
                page.found.append(one)
            else:
                page.prefixes.append(folded)
        if len(read) <= limit:
            return page
        behind = last + BEHIND if page.prefixes and last == page.prefixes[-1] else read[-1].id


def _fold(id_: str, prefix: str, delimiter: str) -> str | None:
    """The id's part up to the first delimiter behind the prefix; None when there is none."""
    at = id_.find(delimiter, len(prefix)) if delimiter else -1
    return None if at < 0 else id_[: at + len(delimiter)]
