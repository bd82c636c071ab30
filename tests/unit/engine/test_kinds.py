"""Kinds say at registration what could never run, and at submit what would have been right."""

from __future__ import annotations

import enum
from typing import Annotated, Any, Literal

import msgspec
import pytest

import milepost
from milepost.engine.kinds import Kinds
from milepost.errors import InvalidInput
from milepost.work.images import ImportInput


class Colour(enum.StrEnum):
    RED = "red"
    BLUE = "blue"


class Inner(msgspec.Struct):
    colour: Colour
    size: Literal[1, 2, 4] | None = None


class Outer(msgspec.Struct):
    inner: Inner
    many: list[Inner] = []
    named: dict[str, Colour] = {}
    tagged: Annotated[Literal["a", "b"], msgspec.Meta(description="x")] = "a"


class Order(milepost.Struct, forbid_unknown_fields=True):
    sku: str
    count: int = 1


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"name": ""}, "a kind's name is ''"),
        ({"name": "a\nb"}, "printable"),
        ({"name": "x" * 256}, "1 to 255"),
        ({"queue": ""}, "queue is ''"),
        ({"priority": 10}, "priority is 10"),
        ({"priority": -1}, "priority is -1"),
        ({"attempts": 0}, "attempts is 0"),
        ({"timeout_s": 0}, "timeout_s is 0"),
        ({"timeout_s": float("nan")}, "timeout_s is nan"),
        ({"crashes_max": 0.5}, "crashes_max is 0.5"),
    ],
)
def test_a_kind_whose_own_defaults_could_never_run_is_refused_when_it_is_made(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Kinds().kind(**{"name": "k", **wrong})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"inner": {"colour": "green"}},
            "Invalid enum value 'green' (allowed: blue, red) at $.input.inner.colour",
        ),
        ({"inner": {"colour": "red", "size": 3}}, "Invalid enum value 3 (allowed: 1, 2, 4) at $.input.inner.size"),
        (
            {"inner": {"colour": "red"}, "many": [{"colour": "x"}]},
            "Invalid enum value 'x' (allowed: blue, red) at $.input.many[0].colour",
        ),
        (
            {"inner": {"colour": "red"}, "named": {"n": "x"}},
            "Invalid enum value 'x' (allowed: blue, red) at $.input.named[...]",
        ),
        ({"inner": {"colour": "red"}, "tagged": "c"}, "Invalid enum value 'c' (allowed: a, b) at $.input.tagged"),
        ({"inner": {"colour": 5}}, "Expected `str`, got `int` at $.input.inner.colour"),
    ],
)
def test_a_word_that_is_none_of_the_allowed_is_told_which_are(given: dict[str, Any], message: str) -> None:
    kinds = Kinds()

    @kinds.kind("k")
    async def function(job: milepost.Running, spec: Outer) -> None: ...

    with pytest.raises(InvalidInput) as refused:
        kinds.get("k").read_input(msgspec.json.encode(given))
    assert refused.value.message == message
    assert refused.value.path == message.rpartition(" at ")[2]


def test_an_image_format_that_is_not_known_is_told_which_are() -> None:
    kinds = Kinds()

    @kinds.kind("k")
    async def function(job: milepost.Running, spec: ImportInput) -> None: ...

    properties = {"disk_format": "zzz", "container_format": "bare"}
    asked = {"import_from": "http://a.test/x", "import_from_format": "raw", "image_properties": properties}
    with pytest.raises(InvalidInput, match=r"'zzz' \(allowed: iso, qcow2, raw, .*\) at \$\.input\.image_properties\.disk_format"):
        kinds.get("k").read_input(msgspec.json.encode(asked))
    properties["disk_format"], properties["visibility"] = "raw", "everybody"
    with pytest.raises(InvalidInput, match=r"'everybody' \(allowed: public, community, shared, private\)"):
        kinds.get("k").read_input(msgspec.json.encode(asked))


def test_a_struct_that_forbids_unknown_fields_refuses_a_misspelt_one_by_name() -> None:
    kinds = Kinds()

    @kinds.kind("order")
    async def order(job: milepost.Running, spec: Order) -> None: ...

    with pytest.raises(InvalidInput, match="unknown field `cuont`"):
        kinds.get("order").read_input(b'{"sku": "tea", "cuont": 2}')
    assert kinds.get("order").schemas()[0] is not None
