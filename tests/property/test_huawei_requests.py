"""Whatever JSON comes to Huawei's URLs is refused in the vendor's manner or becomes a job of the real kinds; never a 500."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "server"))

from server_house import open_house
from test_server_huawei import ID, IMAGE_ID, KINDS, NEW, PROJECT, VOLUME, add_kinds, put, server

from milepost.compute import SERVER, encode_server
from milepost.volume import VOLUME as TYPE
from milepost.volume import Volume, encode_volume
from milepost.wiring import load_kinds

PATHS = (
    ("POST", "/v2.1/p1/cloudvolumes"),
    ("POST", f"/v2.1/p1/cloudvolumes/{ID}/action"),
    ("PUT", f"/v2/p1/cloudvolumes/{ID}"),
    ("POST", "/v2/p1/cloudvolumes/delete"),
    ("POST", f"/v2/p1/volumes/{ID}/retype"),
    ("POST", "/v5/p1/volumes/batch-extend"),
    ("PUT", f"/v5/p1/cloudvolumes/{ID}/qos"),
    ("POST", "/v1.1/p1/cloudservers"),
    ("POST", "/v1/p1/cloudservers/delete"),
    ("POST", "/v1/p1/cloudservers/action"),
    ("POST", f"/v1/p1/cloudservers/{ID}/resize"),
    ("POST", f"/v1/p1/cloudservers/{ID}/nics"),
    ("POST", f"/v1/p1/cloudservers/{ID}/nics/delete"),
    ("POST", f"/v1/p1/cloudservers/{ID}/attachvolume"),
    ("POST", f"/v1/p1/batchaction/attachvolumes/{ID}"),
    ("POST", f"/v1/p1/batchaction/detachvolumes/{ID}"),
    ("POST", f"/v2/p1/cloudservers/{ID}/changeos"),
    ("POST", f"/v1/p1/cloudservers/{ID}/reinstallos"),
)
SEEDS: list[Any] = [
    {**VOLUME, "bssParam": {"chargingMode": "prePaid", "isAutoPay": "true"}, "server_id": ID},
    {"volume": {**VOLUME["volume"], "imageRef": IMAGE_ID, "metadata": {"full_clone": "1"}, "tags": {"a": "b"}, "count": 2}},
    {"os-extend": {"new_size": 20}, "bssParam": {"isAutoPay": True}},
    {"os-retype": {"new_type": "SSD"}},
    {"volumes": [{"id": ID, "new_size": 20}], "bss_param": {"is_auto_pay": "false"}},
    {"server": {**NEW, "data_volumes": [{"volumetype": "SAS", "size": 10}], "server_tags": [{"key": "a", "value": "b"}]}},
    {"server": {**NEW, "extendparam": {"chargingMode": 1}, "metadata": {"a": "b"}, "user_data": "aGk="}, "dry_run": False},
    {"servers": [{"id": ID}], "delete_volume": True},
    {"os-stop": {"type": "HARD", "servers": [{"id": ID}]}},
    {"resize": {"flavorRef": "t6.small.1", "extendparam": {"isAutoPay": "true"}}},
    {"nics": [{"id": ID, "subnet_id": "s", "security_groups": [{"id": "g"}]}]},
    {"volumeAttachment": {"volumeId": ID, "device": "/dev/sdb"}},
    {"serverinfo": [{"server_id": ID, "device": "/dev/sdb"}]},
    {"os-change": {"imageid": IMAGE_ID, "metadata": {}}},
    {"os-reinstall": {}},
]
scalars = st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.floats(allow_nan=False) | st.text(max_size=40)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3), max_leaves=8
)


@st.composite
def bent(draw: Any) -> Any:
    """A right body with something in it replaced, removed or doubled."""
    body = msgspec.json.decode(msgspec.json.encode(draw(st.sampled_from(SEEDS))))
    for _ in range(draw(st.integers(0, 3))):
        place = body
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(place[key], dict | list) and place[key] and draw(st.booleans()):
                place = place[key]
                continue
            if draw(st.booleans()):
                place[key] = draw(anything)
            else:
                del place[key]
            break
    return body


CASE = st.tuples(st.sampled_from(PATHS), bent() | anything)


def check(found: Any) -> None:
    assert found.status in (200, 202) or 400 <= found.status < 500, found.body
    if found.status >= 400:
        told = found.json.get("error") or {"code": found.json["error_code"], "message": found.json["error_msg"]}
        assert told["code"]
        assert told["message"]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cases=st.lists(CASE, min_size=1, max_size=8))
def test_no_body_is_a_500(cases: list[Any]) -> None:
    asyncio.run(_ask(cases))


async def _ask(cases: list[Any]) -> None:
    async with open_house() as house:
        for kind in load_kinds():
            if kind.name in KINDS:
                house.service.kinds.add(kind)
        add_kinds(house)
        volume = Volume(id=ID, project=PROJECT, size_gib=10, volume_type="SAS", created_us=1, updated_us=1, order_id="CS1")
        await put(house, TYPE, ID, encode_volume(volume))
        await put(house, SERVER, ID, encode_server(server(order_id="CS1")))
        for (method, path), body in cases:
            check(await house.web.ask(method, path, raw=_bytes(body)))


def _bytes(body: Any) -> bytes:
    import json

    return json.dumps(body).encode("utf-8", "surrogatepass")


READS = (
    "/v2/p1/cloudvolumes/detail",
    "/v1/p1/cloudservers/detail",
    "/v1.1/p1/cloudservers/detail",
    "/v1/p1/cloudservers/flavors",
    "/v1/p1/cloudservers/resize_flavors",
)
NAMES = """
    limit offset marker name status metadata ids id sort_key sort_dir multiattach tags not-tags ip flavor_id server_id
    availability_zone service_type instance_uuid
""".split()  # noqa: SIM905


@settings(max_examples=100, deadline=None)
@given(path=st.sampled_from(READS), pairs=st.lists(st.tuples(st.sampled_from(NAMES), st.text(max_size=30)), max_size=6))
def test_no_query_is_a_500(path: str, pairs: list[tuple[str, str]]) -> None:
    asyncio.run(_read(path, pairs))


async def _read(path: str, pairs: list[tuple[str, str]]) -> None:
    from urllib.parse import urlencode

    async with open_house() as house:
        await put(house, SERVER, ID, encode_server(server()))
        check(await house.web.get(f"{path}?{urlencode(pairs, errors='replace')}"))


@settings(max_examples=100, deadline=None)
@given(
    path=st.sampled_from(
        ["/v1/p1/jobs/{}", "/v2/p1/cloudvolumes/{}", "/v1/p1/cloudservers/{}", "/v1/{}/jobs/x", "/v2/{}/cloudvolumes/x"]
    ),
    name=st.text(st.characters(exclude_characters="/?#", exclude_categories=["Cs"]), min_size=1, max_size=40),
)
def test_no_path_is_a_500(path: str, name: str) -> None:
    asyncio.run(_get(path.format(name)))


async def _get(path: str) -> None:
    from urllib.parse import quote

    async with open_house() as house:
        found = await house.web.get(quote(path))
        assert 400 <= found.status < 500, found.body
