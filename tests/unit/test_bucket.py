"""The etag of objects: known values, and the same whatever pieces the bytes come in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost.bucket import BLOCK_BYTES, Etag, etag, etag_of_parts

KNOWN = [
    (b"", "Fto5o-5ea0sNMlW_75VgGJCv2AcJ"),
    (b"hello", "Fqr0xh3cxeii2r7eDztILNmuqUNN"),
    (b"\0", "FlupPJ2wz_k_UrUh10IOQ_btonhP"),
    (bytes(BLOCK_BYTES - 1), "FojtiN9WHTdzhzAV4wrBC76RaWV0"),
    (bytes(BLOCK_BYTES), "FivMvS848VwT631aif2dhfWV4jvD"),
    (bytes(BLOCK_BYTES + 1), "lhCFgki5yzon0rjN9uJusf6qtsF6"),
    (bytes(2 * BLOCK_BYTES), "lsCVE24-Immdd6zm-ffVVhsWYcDG"),
    (b"a" * (9 << 20), "lo-Big7b5RTsoCkykeYLTTzo72ZD"),
]


@pytest.mark.parametrize(("data", "expected"), KNOWN, ids=[f"{len(data)} bytes" for data, _ in KNOWN])
def test_known_etags(data: bytes, expected: str) -> None:
    assert etag(data) == expected


@given(st.lists(st.integers(0, BLOCK_BYTES + 3), max_size=4))
def test_pieces_do_not_matter(sizes: list[int]) -> None:
    made = Etag()
    for size in sizes:
        made.update(b"x" * size)
    assert made.text() == etag(b"x" * sum(sizes))


@pytest.mark.parametrize(
    ("data", "sizes", "expected"),
    [
        (b"x" * ((2 << 20) + 5), [1 << 20, 1 << 20, 5], "ngYcZhLR79uIwewWzvUy_lo-rxmj"),
        (b"a" * (9 << 20), [8 << 20, 1 << 20], "nonhfK2Z_d6nLmIR9IyeJ6ZJxHRG"),
        (b"a" * (9 << 20), [4 << 20, 4 << 20, 1 << 20], None),
        (b"", [], None),
    ],
)
def test_etags_of_parts(data: bytes, sizes: list[int], expected: str | None) -> None:
    etags, at = [], 0
    for size in sizes:
        etags.append(etag(data[at : at + size]))
        at += size
    assert etag_of_parts(etags, sizes) == expected
