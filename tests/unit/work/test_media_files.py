"""qhash, concat, mkzip, qrcode, md2html: real bytes in, real bytes out, and what is refused."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest
from clip_house import Clips, clip, look

from milepost.work.media.archive import Entry, check_names, parse_index, parse_mkzip
from milepost.work.media.commands import COMMANDS, BadCommand, FopFailed
from milepost.work.media.documents import Markdown, render
from milepost.work.media.grammar import encode_text


@pytest.fixture
def clips(tmp_path: Path) -> Clips:
    return Clips(tmp_path)


def file(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def kodo(key: str) -> str:
    return f"kodo://media/{key}"


# --- qhash, concat --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["md5", "sha1", "sha256"])
async def test_qhash_is_the_digest_and_the_size(algorithm, clips, tmp_path):
    hello = file(tmp_path / "hello", b"hello")
    output = await clips.do(f"qhash/{algorithm}", hello)
    assert output.result == {"hash": hashlib.new(algorithm, b"hello").hexdigest(), "fsize": 5}
    large = clip("bigbuckbunny")
    assert (await clips.do(f"qhash/{algorithm}", large)).result["hash"] == hashlib.new(algorithm, large.read_bytes()).hexdigest()


async def test_concat_joins_bytes_and_says_the_type(clips, tmp_path):
    one, two = file(tmp_path / "one", b"one "), file(tmp_path / "two", b"two ")
    urls = "/".join(encode_text(kodo(key)) for key in ("two", "one", "two"))
    output = await clips.do(
        f"concat/mimeType/{encode_text('text/plain')}/{urls}", one, files={kodo("two"): two, kodo("one"): one}
    )
    assert output.files[0].path.read_bytes() == b"one two one two "
    assert output.files[0].mime_type == "text/plain"


@pytest.mark.parametrize("url", ["kodo://other/a", "http://127.0.0.1:1/a", "file:///etc/passwd", "/etc/passwd"])
async def test_only_objects_of_the_sources_bucket_are_joined_or_packed(url, clips, tmp_path):
    source, there = file(tmp_path / "a", b"a"), {url: file(tmp_path / "b", b"b")}
    for command in (f"concat/mimeType/{encode_text('a/b')}/{encode_text(url)}", f"mkzip/2/url/{encode_text(url)}"):
        with pytest.raises(FopFailed, match="failed to GET"):
            await clips.do(command, source, files=there)


async def test_too_much_together_is_refused_before_it_is_written(clips, tmp_path):
    source, other = file(tmp_path / "a", b"a" * 600), file(tmp_path / "b", b"b" * 600)
    for command in (
        f"concat/mimeType/{encode_text('a/b')}/{encode_text(kodo('b'))}",
        f"mkzip/2/url/{encode_text(kodo('b'))}/url/{encode_text(kodo('c'))}",
    ):
        with pytest.raises(FopFailed, match="1200 bytes together; at most 1000"):
            await clips.do(command, source, files={kodo("b"): other, kodo("c"): other}, mkzip_bytes_max=1000)


# --- mkzip ----------------------------------------------------------------------------------------------------------------


async def test_mkzip_packs_objects_under_their_names_and_aliases(clips, tmp_path):
    text, video = file(tmp_path / "t", b"text " * 500), clip("carphone_distorted")
    files = {kodo("docs/a.txt"): text, kodo("v.mp4"): video}
    command = f"mkzip/2/url/{encode_text(kodo('docs/a.txt'))}/url/{encode_text(kodo('v.mp4'))}/alias/{encode_text('视频/一.mp4')}"
    output = await clips.do(command, text, files=files)
    assert output.files[0].mime_type == "application/zip"
    with zipfile.ZipFile(output.files[0].path) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["a.txt", "视频/一.mp4"]
        assert archive.read("视频/一.mp4") == video.read_bytes()
        assert archive.getinfo("a.txt").compress_size < 200
    again = await clips.do(command, text, files=files)
    assert again.files[0].path.read_bytes() == output.files[0].path.read_bytes()  # so its key, the hash, is the same


async def test_mkzip_4_reads_its_list_from_the_source(clips, tmp_path):
    text = file(tmp_path / "t", b"text")
    lines = [f"/url/{encode_text(kodo('t'))}", f"/url/{encode_text(kodo('t'))}/alias/{encode_text('b/t')}", ""]
    for ending in ("\n", "\r\n"):
        index = file(tmp_path / "index", ending.join(lines).encode())
        output = await clips.do(f"mkzip/4/encoding/{encode_text('utf-8')}/", index, files={kodo("t"): text})
        with zipfile.ZipFile(output.files[0].path) as archive:
            assert archive.namelist() == ["t", "b/t"]


async def test_mkzip_names_can_be_gbk(clips, tmp_path):
    text = file(tmp_path / "t", b"text")
    command = f"mkzip/2/encoding/{encode_text('gbk')}/url/{encode_text(kodo('t'))}/alias/{encode_text('文件.txt')}"
    path = await clips.make(command, text, files={kodo("t"): text})
    assert "文件.txt".encode("gbk") in path.read_bytes()
    with zipfile.ZipFile(path, metadata_encoding="gbk") as archive:
        assert archive.namelist() == ["文件.txt"]
        assert archive.testzip() is None


async def test_an_empty_file_is_refused(clips, tmp_path):
    empty = file(tmp_path / "t", b"")
    with pytest.raises(FopFailed, match="empty files are not packed"):
        await clips.do(f"mkzip/2/url/{encode_text(kodo('t'))}", empty, files={kodo("t"): empty})


async def test_a_missing_file_is_named(clips, tmp_path):
    with pytest.raises(FopFailed, match="failed to GET kodo://media/gone"):
        await clips.do(f"mkzip/2/url/{encode_text(kodo('gone'))}", file(tmp_path / "t", b"t"))


@pytest.mark.parametrize(
    "name",
    ["", "/etc/passwd", "../a", "a/../b", "a//b", "a/", ".", "a\\b", "C:a", "c:/a", "a\0b", "a\nb", "a\u202eb", "a" * 1025],
)
def test_a_name_that_leaves_the_folder_is_refused(name):
    with pytest.raises(BadCommand):
        check_names([Entry("kodo://media/a", name)], "utf-8")


def test_two_files_of_one_name_are_refused_in_any_case():
    for names in (("a", "a"), ("A.txt", "a.TXT"), ("a", "a/b"), ("a/b/c", "A/B")):
        with pytest.raises(BadCommand, match=r"name|lies in"):
            check_names([Entry("kodo://media/x", name) for name in names], "utf-8")


def test_a_name_that_gbk_cannot_write_is_refused():
    with pytest.raises(BadCommand, match="cannot be written in gbk"):
        check_names([Entry("kodo://media/a", "😀")], "gbk")


@pytest.mark.parametrize(
    "args",
    ["", "3", "2", "2/url", "2/url/!!", "2/encoding/bGF0aW4x/url/YQ==", "2/alias/YQ==", "4/url/YQ==", "2/" + "url/YQ==/" * 300],
)
def test_a_wrong_mkzip_is_told(args):
    with pytest.raises(BadCommand, match="mkzip"):
        parse_mkzip(args.split("/"))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "empty"), ("\n\n", "empty"), ("/url/YQ==\nhello", "line 2"), ("/url/YQ==/url/Yg==", "line 1"),
        ("\n".join(["/url/YQ=="] * 4), "more than 3 files"), ("/url/YQ==\n/url/YQ==", "two files"),
    ],
)  # fmt: skip
def test_a_wrong_list_is_told_by_its_line(text, why):
    with pytest.raises(BadCommand, match=why):
        parse_index(text, 3, "utf-8")


# --- qrcode, md2html -------------------------------------------------------------------------------------------------------


async def test_a_qrcode_is_a_picture_of_the_url_or_of_the_content(clips, tmp_path):
    source = file(tmp_path / "t", b"hello")
    sizes = []
    for command in ("qrcode", "qrcode/1", "qrcode/1/level/H"):
        video = look(await clips.make(command, source, public_url="https://jobs.example.test")).video
        assert video is not None
        assert video.codec == "png"
        assert video.width == video.height
        sizes.append(video.width // 6 - 8)  # modules, without the quiet zone
    assert sizes == [33, 21, 21]  # versions 4, 1, 1


async def test_more_than_a_code_holds_is_refused(clips, tmp_path):
    with pytest.raises(FopFailed, match="do not fit"):
        await clips.do("qrcode/1/level/H", file(tmp_path / "t", b"\xff" * 2000))
    with pytest.raises(FopFailed, match="more than 2953"):
        await clips.do("qrcode/1", file(tmp_path / "t2", b"x" * 3000))


async def test_markdown_becomes_a_document_or_a_body(clips, tmp_path):
    source = file(tmp_path / "t.md", "# Title\n\n*yes* 你好\n".encode())
    whole = (await clips.make(f"md2html/0/css/{encode_text('https://a.example/s.css?a=1&b=2')}", source)).read_text()
    assert whole.startswith("<!DOCTYPE html>")
    assert '<link rel="stylesheet" href="https://a.example/s.css?a=1&amp;b=2">' in whole
    assert (await clips.make("md2html/1", source)).read_text() == "<h1>Title</h1>\n<p><em>yes</em> 你好</p>\n"


def test_markup_and_scripts_in_markdown_stay_text():
    made = render(
        Markdown(body_only=True),
        "<script>alert(1)</script>\n\n[x](javascript:alert(1)) <b onclick=a>b</b> ![x](data:text/html,a)",
    )
    assert "<script" not in made
    assert "<b " not in made
    assert "href=" not in made
    assert "src=" not in made


async def test_what_is_no_text_is_no_markdown(clips, tmp_path):
    with pytest.raises(FopFailed, match="no text in UTF-8"):
        await clips.do("md2html", file(tmp_path / "t", b"\xff\xfe\x00"))


@pytest.mark.parametrize(
    "command",
    [
        "qhash",
        "qhash/crc32",
        "qhash/md5/x",
        "qrcode/2",
        "qrcode/level/Z",
        "md2html/3",
        "md2html/css/YQ==",
        "concat",
        "concat/mimeType/YQ==/YQ==",
        "concat/mimeType/YS9i",
        "avinfo/1",
    ],
)
def test_other_wrong_commands_are_told(command):
    name, *args = command.split("/")
    with pytest.raises(BadCommand, match=name):
        COMMANDS[name].parse(args)
