"""Pages of a bucket against a sorted list: every key once, in the order of its bytes, whatever prefix, delimiter and limit."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from milepost.bucket import KEY_BYTES_MAX, StoredObject, encode_object, objects_of
from milepost.job import ProjectId
from milepost.store import Resource
from milepost.store.listing import page_folded
from milepost.store.sqlite import SqliteStore
from milepost.wire.qiniu.objects import encode_marker, read_marker

ANN = ProjectId("ann")
# Few letters, so that prefixes and delimiters meet; the highest and the widest characters among them.
letters = st.sampled_from(["a", "b", "/", "//", ".", "中", "\U0010ffff", "\x01", "é"])
keys = st.lists(letters, max_size=6).map("".join) | st.just("\U0010ffff" * (KEY_BYTES_MAX // 4)) | st.just("")


def expected(names: list[str], prefix: str, delimiter: str) -> list[tuple[str, bool]]:
    """The entries of the whole listing, and whether each is folded."""
    found: list[tuple[str, bool]] = []
    for name in sorted(names, key=str.encode):
        if not name.startswith(prefix):
            continue
        at = name.find(delimiter, len(prefix)) if delimiter else -1
        entry = (name, False) if at < 0 else (name[: at + len(delimiter)], True)
        if entry not in found:
            found.append(entry)
    return found


async def walk(names: set[str], others: set[str], prefix: str, delimiter: str, limit: int) -> list[tuple[str, bool]]:
    """All pages one after the other, through the marker's text."""
    store: Any = SqliteStore(":memory:")
    await store.open()
    try:
        for project, some in ((ANN, names), (ProjectId("ben"), others - names)):
            for name in some:
                stored = StoredObject(key=name, hash="h", size_bytes=0, put_us=0, object_key="o")
                doc = encode_object(stored)
                record = Resource(
                    type=objects_of("media"), id=name, project=project, doc=doc, created_us=1, updated_us=1, version=0
                )
                await store.put_resource(record)
        entries: list[tuple[str, bool]] = []
        after: str | None = None
        while True:
            page = await page_folded(
                store, objects_of("media"), ANN, prefix=prefix, delimiter=delimiter, after=after, limit=limit
            )
            here = [(one.id, False) for one in page.found] + [(one, True) for one in page.prefixes]
            assert len(here) <= limit
            entries += sorted(here, key=lambda entry: entry[0].encode())
            if page.after is None:
                return entries
            assert len(here) == limit
            after = read_marker(encode_marker(page.after))
    finally:
        await store.close()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sets(keys, max_size=14),
    st.sets(keys, max_size=4),
    st.lists(letters, max_size=2).map("".join),
    st.sampled_from(["", "/", "//", "a", "中", "\U0010ffff"]),
    st.integers(1, 5),
)
def test_the_pages_are_the_list(names: set[str], others: set[str], prefix: str, delimiter: str, limit: int) -> None:
    """Records of another project under the same type, as a deleted bucket may leave them, are in no page."""
    found = asyncio.run(walk(names, others, prefix, delimiter, limit))
    assert found == expected(sorted(names), prefix, delimiter)
