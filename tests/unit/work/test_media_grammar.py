from __future__ import annotations

import base64
import hashlib

import pytest

from milepost.work.media import pictures  # noqa: F401  (registers the commands that are used here)
from milepost.work.media.commands import COMMANDS, BadCommand, Command, register
from milepost.work.media.grammar import (
    Arguments,
    BadFop,
    SaveAs,
    automatic_key,
    decode_bytes,
    decode_entry,
    decode_text,
    encode_entry,
    encode_text,
    parse_fop,
    split_fops,
    unescape,
)

SAVE = "saveas/" + encode_entry("media", "out/t.jpg")


def names(text: str) -> list[str]:
    return [step.command.name for step in parse_fop(text).steps]


def test_commands_stand_between_semicolons_and_keep_their_text():
    assert split_fops("imageInfo; imageView2/1/w/200|saveas/YTpi ;;exif") == [
        "imageInfo",
        "imageView2/1/w/200|saveas/YTpi",
        "exif",
    ]
    assert split_fops("") == []


def test_too_many_commands_are_refused():
    with pytest.raises(BadCommand):
        split_fops(";".join(["imageInfo"] * 101))


def test_a_pipe_has_steps_and_saveas_is_none_of_them():
    fop = parse_fop(f"imageView2/1/w/200|imageslim|{SAVE}")
    assert [step.command.name for step in fop.steps] == ["imageView2", "imageslim"]
    assert fop.save == SaveAs("media", "out/t.jpg")
    assert fop.text == "imageView2/1/w/200|imageslim"


def test_without_saveas_there_is_none():
    assert parse_fop("imageInfo").save is None


@pytest.mark.parametrize(
    "text", ["imageView2/1/w/200%7CimageInfo", "imageView2/1/w/200%7cimageInfo", "imageView2/1/w/200 | imageInfo"]
)
def test_the_bar_of_a_pipe_may_be_escaped_or_spaced(text):
    assert names(text) == ["imageView2", "imageInfo"]


@pytest.mark.parametrize(
    ("escaped", "plain"),
    [
        ("thumbnail/200x300%3E", "thumbnail/200x300>"),
        ("thumbnail/200x300%3c", "thumbnail/200x300<"),
        ("thumbnail/%2175p", "thumbnail/!75p"),
        ("thumbnail/350000%40", "thumbnail/350000@"),
        ("saveas/YWI%3D", "saveas/YWI="),
        ("75%25", "75%"),
        ("%2F%41", "%2F%41"),
        ("%253E", "%3E"),
    ],
)
def test_characters_of_the_grammar_may_be_percent_encoded_once_more(escaped, plain):
    assert unescape(escaped) == plain


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("nothing/1", 0),
        ("", 0),
        ("imageInfo|nothing", 1),
        ("imageView2/1/w/200||imageInfo", 1),
        ("imageView2/1/w/200|imageView2/9", 1),
        (f"{SAVE}", 0),
        (f"imageInfo|{SAVE}|imageInfo", 1),
        ("imageInfo|saveas/", 1),
        ("imageInfo|saveas", 1),
        ("imageInfo|saveas/!!!!", 1),
        ("imageInfo|saveas/" + encode_text(":key"), 1),
        ("imageInfo|saveas/" + encode_entry("media", "k" * 751), 1),
        ("imageInfo|saveas/YTpi/more", 1),
        ("ImageInfo", 0),
        ("imageinfo", 0),
        ("imageInfo/1", 0),
        ("|".join(["imageInfo"] * 21), 20),
    ],
)
def test_what_is_wrong_names_its_step(text, index):
    with pytest.raises(BadFop) as caught:
        parse_fop(text)
    assert caught.value.index == index
    assert str(caught.value)


def test_a_signature_behind_saveas_belongs_to_another_interface_and_is_ignored():
    assert parse_fop(f"imageInfo|{SAVE}/sign/ak:x=").save == SaveAs("media", "out/t.jpg")


def test_an_entry_without_key_is_saved_under_its_hash():
    assert decode_entry(encode_text("media")) == SaveAs("media", None)
    assert decode_entry(encode_text("media:")) == SaveAs("media", None)


def test_an_entrys_key_may_hold_colons_slashes_and_any_letters():
    assert decode_entry(encode_entry("media", "a:b/../ü 图")) == SaveAs("media", "a:b/../ü 图")


@pytest.mark.parametrize(
    ("value", "text"), [("cmVk", "red"), ("I0ZGMDAwMA==", "#FF0000"), ("I0ZGMDAwMA", "#FF0000"), ("Z2Jr", "gbk"), ("", "")]
)
def test_base64_with_and_without_padding(value, text):
    assert decode_text(value) == text


@pytest.mark.parametrize("value", ["a", "ab+=", "=", "a=b", "ab==c", "____=====", "ä", "YQ==\n"])
def test_what_is_no_base64_is_refused(value):
    if value == "=":
        assert decode_bytes(value) == b""
        return
    with pytest.raises(BadCommand):
        decode_bytes(value)


def test_base64_of_something_else_than_text_is_refused():
    with pytest.raises(BadCommand):
        decode_text(base64.urlsafe_b64encode(b"\xff\xfe").decode())


def test_an_automatic_key_is_the_commands_digest_and_the_sources_hash():
    key = automatic_key("imageView2/1/w/200", "FuAzIa-m1s6dpkeET2tSlO2eemHU")
    digest = base64.urlsafe_b64encode(hashlib.sha1(b"imageView2/1/w/200").digest()).decode()
    assert key == f"{digest}/FuAzIa-m1s6dpkeET2tSlO2eemHU"
    assert len(digest) == 28
    assert digest.endswith("=")


def test_arguments_are_pairs_flags_and_what_a_slash_at_the_end_leaves():
    given = Arguments("x", ["auto-orient", "strip", "1", "thumbnail", "2x", ""])
    assert list(given.pairs(frozenset({"auto-orient", "strip"}))) == [("auto-orient", "1"), ("strip", "1"), ("thumbnail", "2x")]
    with pytest.raises(BadCommand, match="value of 'w'"):
        list(Arguments("x", ["w"]).pairs())


def test_a_name_is_registered_once():
    known = COMMANDS["imageInfo"]
    assert register(known) is known
    with pytest.raises(ValueError, match="twice"):
        register(Command(name="imageInfo", makes="info", parse=lambda _args: None, run=known.run))
    assert COMMANDS["imageInfo"] is known


def test_several_objects_cannot_be_piped_on():
    name = "manyForThisTest"
    register(Command(name=name, makes="objects", parse=lambda args: args, run=COMMANDS["imageInfo"].run))
    try:
        with pytest.raises(BadFop) as caught:
            parse_fop(f"{name}|imageInfo")
        assert caught.value.index == 0
        assert parse_fop(name).steps
    finally:
        del COMMANDS[name]
