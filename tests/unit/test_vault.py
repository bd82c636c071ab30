"""Secrets at rest: what opens, what does not, and how a key is changed."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest

from milepost.errors import Conflict, InvalidInput
from milepost.job import ProjectId
from milepost.settings import Settings
from milepost.store.credentials import get_credential, open_secret, put_credential, reseal, same_place
from milepost.store.sqlite import SqliteStore
from milepost.tracking import CREDENTIAL, Secret
from milepost.vault import Vault, open_vault, read_keys

OLD, NEW = b"o" * 32, b"n" * 32
ABOUT = "milepost credential demo/mine"


def test_what_was_sealed_opens_with_the_same_key_and_subject() -> None:
    vault = Vault([OLD])
    sealed = vault.seal(b"hush", about=ABOUT)
    assert b"hush" not in sealed.encode()
    assert vault.open(sealed, about=ABOUT) == b"hush"
    assert vault.seal(b"hush", about=ABOUT) != sealed


def test_another_key_another_subject_and_a_changed_text_do_not_open() -> None:
    sealed = Vault([OLD]).seal(b"hush", about=ABOUT)
    with pytest.raises(Conflict, match="key"):
        Vault([NEW]).open(sealed, about=ABOUT)
    with pytest.raises(Conflict, match="not what was sealed"):
        Vault([OLD]).open(sealed, about="milepost credential other/mine")
    head, _, body = sealed.rpartition(".")
    for place in range(0, len(body), 7):
        changed = body[:place] + ("A" if body[place] != "A" else "B") + body[place + 1 :]
        with pytest.raises(Conflict):
            Vault([OLD]).open(f"{head}.{changed}", about=ABOUT)


async def test_a_key_is_rotated_without_losing_a_credential(tmp_path: Path) -> None:
    store, demo = SqliteStore(":memory:"), ProjectId("demo")
    await store.open()
    try:
        given = {"type": "token", "endpoint": "http://cloud.example", "who": "token", "now_us": 1}
        await put_credential(store, Vault([OLD]), demo, "mine", secret=Secret(token="hush"), **given)  # type: ignore[arg-type]
        both = Vault([NEW, OLD])
        assert await reseal(store, both) == 1
        assert await reseal(store, both) == 0
        credential = await get_credential(store, demo, "mine")
        assert open_secret(Vault([NEW]), "demo", credential).token == "hush"
        with pytest.raises(Conflict):
            open_secret(Vault([OLD]), "demo", credential)
        assert await reseal(store, Vault([b"x" * 32])) == 0  # what no key opens stays
        assert (await store.list_resources(CREDENTIAL))[0].doc == (await store.list_resources(CREDENTIAL))[0].doc
        assert open_secret(Vault([NEW]), "demo", await get_credential(store, demo, "mine")).token == "hush"
    finally:
        await store.close()


def test_keys_are_base64_or_hex_and_comments_are_passed_over() -> None:
    text = f"# new\n{base64.b64encode(NEW).decode()}\n\n{OLD.hex()}\n{base64.urlsafe_b64encode(bytes([255] * 32)).decode()}\n"
    assert read_keys(text, source="file") == [NEW, OLD, bytes([255] * 32)]


@pytest.mark.parametrize("text", ["", "# only\n", "short", "zz" * 32, base64.b64encode(b"x" * 31).decode()])
def test_what_is_no_key_is_refused_without_showing_it(text: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        read_keys(text, source="the file")
    assert not text.strip("# \n") or text.strip() not in str(refused.value)


def test_the_file_is_read_again_when_it_changed(tmp_path: Path) -> None:
    file = tmp_path / "key"
    settings = Settings(secret_file=str(file))
    with pytest.raises(Conflict, match="cannot be read"):
        open_vault(settings, {})
    file.write_text(OLD.hex())
    first = open_vault(settings, {})
    assert open_vault(settings, {}) is first
    file.write_text(f"{NEW.hex()}\n{OLD.hex()}\n")
    os.utime(file, (1, 1))
    second = open_vault(settings, {})
    assert second.key_id != first.key_id
    assert second.open(first.seal(b"a", about="b"), about="b") == b"a"


def test_without_a_key_it_is_said_what_to_do() -> None:
    with pytest.raises(Conflict) as refused:
        open_vault(Settings(), {})
    assert "openssl" in (refused.value.hint or "")
    assert open_vault(Settings(), {"MILEPOST_SECRET": OLD.hex()}).key_id


def test_no_repr_shows_a_secret() -> None:
    from milepost.wire.tracking import CredentialRequest

    shown = [repr(Vault([b"k" * 32])), repr(Secret(token="hush")), f"{Secret(keys={'secret': 'hush'})}"]
    shown.append(repr(CredentialRequest(type="token", endpoint="http://a", token="hush")))
    assert not [text for text in shown if "hush" in text or "kkkk" in text or (b"k" * 32).hex() in text]


@pytest.mark.parametrize(
    ("allowed", "asked", "same"),
    [
        ("https://a.example", "https://a.example/v2", True),
        ("https://a.example:443/x", "https://A.example", True),
        ("https://a.example", "http://a.example", False),
        ("https://a.example", "https://a.example.evil", False),
        ("https://a.example", "https://a.example@evil", False),
        ("https://a.example", "https://evil/https://a.example", False),
        ("https://a,z1=https://b", "https://a,z1=https://b", True),
        ("https://a,z1=https://b", "https://a,z1=https://evil", False),
        ("https://a", "https://a,z1=https://evil", False),
    ],
)
def test_a_credential_goes_to_its_own_origin_only(allowed: str, asked: str, same: bool) -> None:
    assert same_place(allowed, asked) is same
