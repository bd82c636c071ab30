"""Persistent processing: encode then decode is the identity, for every status and form; no JSON at all breaks the reader."""

from __future__ import annotations

from urllib.parse import parse_qsl

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from milepost.job import State
from milepost.wire.qiniu import pfop, prefop

texts = st.text(min_size=1, max_size=20)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def maybe(strategy: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    return st.just(UNSET) | strategy


codes = st.integers(0, 5)
items = st.builds(
    prefop.Item,
    cmd=texts,
    code=codes,
    desc=texts,
    error=maybe(texts),
    error_index=maybe(st.integers(0, 20)),
    hash=maybe(texts),
    key=maybe(texts),
    keys=maybe(st.lists(texts, max_size=3)),
    result=maybe(json_values),
    return_old=st.integers(0, 1),
)
statuses = st.builds(
    prefop.Status,
    id=texts,
    pipeline=maybe(texts),
    code=codes,
    desc=texts,
    reqid=texts,
    input_bucket=texts,
    input_key=st.text(max_size=10),
    type=st.integers(0, 1),
    creation_date=maybe(texts),
    task_from=maybe(texts),
    items=st.lists(items, max_size=4),
)


@given(statuses)
def test_encode_then_decode_is_the_identity(status: prefop.Status) -> None:
    assert prefop.decode(prefop.encode(status)) == status


@given(statuses)
def test_every_status_has_a_view_with_its_items_in_their_order(status: prefop.Status) -> None:
    view = prefop.to_view(status)
    assert [sub.progress.note for sub in view.sub_jobs if sub.progress] == [item.cmd for item in status.items]
    assert view.done == (status.code in (0, 3, 4, 5))
    assert all((sub.error is None) == (sub.state not in (State.FAILED, State.CANCELLED)) for sub in view.sub_jobs)


@given(json_values)
def test_any_json_is_a_status_or_a_clear_refusal(value: object) -> None:
    try:
        prefop.to_view(prefop.decode(msgspec.json.encode(value)))
    except ValueError:
        pass


@given(st.dictionaries(st.sampled_from(["id", "code", "items", "desc", "type", "creationDate"]), json_values))
def test_any_object_with_its_keys_is_a_status_or_a_clear_refusal(value: dict[str, object]) -> None:
    try:
        prefop.to_view(prefop.decode(msgspec.json.encode(value)))
    except ValueError:
        pass


@given(
    st.builds(
        pfop.Form,
        bucket=texts,
        key=st.text(max_size=10),
        fops=st.text(max_size=20),
        workflow_id=st.text(max_size=20),
        notify_url=st.text(max_size=20),
        pipeline=st.text(max_size=20),
        force=st.booleans(),
        idle=st.booleans(),
    )
)
def test_a_form_is_read_as_it_was_written(form: pfop.Form) -> None:
    assert pfop.read_form(dict(parse_qsl(pfop.encode_form(form).decode(), keep_blank_values=True))) == form


@given(st.integers(-62_135_596_800_000_000, 253_402_271_999_000_000))
def test_an_instant_is_read_as_it_was_written(at_us: int) -> None:
    assert prefop.read_date(prefop.creation_date(at_us)) == at_us
