"""Settings: read once, each with its limits, from variables and options."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec
import pytest

from milepost.errors import InvalidInput
from milepost.settings import Settings, unknown_variables


def test_defaults_are_valid() -> None:
    assert Settings.read({}) == Settings()


def test_a_variable_sets_a_field_and_an_option_overrides_it() -> None:
    environ = {"MILEPOST_PORT": "9000", "MILEPOST_LEASE_S": "60.5", "MILEPOST_EGRESS_PRIVATE": "true", "MILEPOST_HOST": ""}
    read = Settings.read(environ, port=9001, host=None)
    assert (read.port, read.lease_s, read.egress_private, read.host) == (9001, 60.5, True, "127.0.0.1")


@pytest.mark.parametrize(
    ("name", "value"),
    [("PORT", "-1"), ("PORT", "65536"), ("PORT", "http"), ("AUTH", "maybe"), ("LEASE_S", "0"), ("QUEUE_LIMIT", "0")],
)
def test_a_wrong_value_names_its_field(name: str, value: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        Settings.read({f"MILEPOST_{name}": value})
    assert name.lower() in raised.value.path
    assert "setting" in raised.value.message
    assert (raised.value.hint or "").startswith(f"MILEPOST_{name}: ")


def test_a_wrong_option_is_named_as_it_was_given() -> None:
    with pytest.raises(InvalidInput) as raised:
        Settings.read({"MILEPOST_LOG_LEVEL": "info"}, log_level="loud")
    assert raised.value.hint == "--log-level: lowest level that is logged; one of debug, error, info, warning"


@pytest.mark.parametrize(
    "url", ["nonsense", "ftp://a.example", "http://", "https://a.example/?x=1", "http://[::1", "http://a:99999"]
)
def test_a_public_url_that_nobody_could_call_is_refused_at_the_start(url: str) -> None:
    with pytest.raises(InvalidInput, match="public_url"):
        Settings(public_url=url)
    assert Settings(public_url="https://jobs.example.com/base/").public_url


def test_a_misspelt_variable_is_found_with_what_was_meant_and_no_other_is() -> None:
    known = {f"MILEPOST_{field.upper()}": "1" for field in Settings.__struct_fields__} | {"MILEPOST_URL": "x", "PATH": "y"}
    assert unknown_variables(known) == {}
    wrong = {"MILEPOST_QUEUES_LIMIT": "4", "MILEPOST_XYZZY": "1"}
    assert unknown_variables(known | wrong) == {"MILEPOST_QUEUES_LIMIT": "MILEPOST_QUEUE_LIMIT", "MILEPOST_XYZZY": None}


def test_a_lease_that_does_not_outlive_three_heartbeats_is_refused() -> None:
    with pytest.raises(InvalidInput) as raised:
        Settings(lease_s=14.9, heartbeat_s=5.0)
    assert raised.value.hint == "set MILEPOST_LEASE_S to at least 15"
    assert Settings(lease_s=15.0, heartbeat_s=5.0).lease_s == 15.0


def test_every_field_says_its_meaning_and_is_read_from_its_variable() -> None:
    hints = get_type_hints(Settings, include_extras=True)
    for name in Settings.__struct_fields__:
        described = [one for one in get_args(hints[name])[1:] if isinstance(one, msgspec.Meta)]
        assert described, name
        assert described[0].description, name
        default: Any = getattr(Settings(), name)
        if default is not None:
            assert (
                getattr(
                    Settings.read({f"MILEPOST_{name.upper()}": str(default).lower() if default is True else str(default)}), name
                )
                == default
            )


def test_settings_do_not_change_and_the_folder_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings(data="here")
    assert settings.data_dir == tmp_path / "here"
    with pytest.raises(AttributeError):
        settings.port = 1  # type: ignore[misc]
