"""`qrcode` and `md2html`: their texts and their work, which a forked child with limits does.

Source: qiniu/developer.qiniu.com docs/v6/api/reference/fop/image/qrcode.md, docs/v6/api/reference/fop/md2html.md.
"""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import msgspec

from milepost.work.media.child import forked
from milepost.work.media.commands import BadCommand, Command, FopFailed, Output, Tools, register
from milepost.work.media.grammar import Arguments, decode_text, one_of, shown

QR_BYTES_MAX = 2953  # of the largest code with the least correction
QR_SCALE = 6  # pixels of one module
MARKDOWN_BYTES_MAX = 2 << 20
CSS_SCHEMES = ("http://", "https://")


class QrCode(msgspec.Struct, frozen=True, tag=True):
    """A code of the source's URL, or of what is in it."""

    content: bool = False
    level: Literal["L", "M", "Q", "H"] = "L"


class Markdown(msgspec.Struct, frozen=True, tag=True):
    """Markdown as HTML."""

    body_only: bool = False
    css: str | None = None


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """What a child is asked for."""

    spec: QrCode | Markdown
    source: str
    out: str
    text: str = ""  # of a code of the URL


# --- the texts -------------------------------------------------------------------------------------------------------


def parse_qrcode(args: list[str]) -> QrCode:
    """Errors: BadCommand."""
    given = Arguments("qrcode", args)
    content = given.peek() in ("0", "1") and given.next("the mode") == "1"
    level: Any = "L"
    for key, value in given.pairs():
        if key != "level":
            raise given.unknown(key)
        level = one_of(value, "qrcode: level", ("L", "M", "Q", "H"))
    return QrCode(content, level)


def parse_md2html(args: list[str]) -> Markdown:
    """Errors: BadCommand."""
    given = Arguments("md2html", args)
    body_only = given.peek() in ("0", "1") and given.next("the mode") == "1"
    css = None
    for key, value in given.pairs():
        if key != "css":
            raise given.unknown(key)
        css = decode_text(value, "md2html: css")
        if not css.startswith(CSS_SCHEMES) or not css.isprintable():
            raise BadCommand(f"md2html: css is an http(s) URL, not {shown(css)}")
    return Markdown(body_only, css)


# --- the commands ----------------------------------------------------------------------------------------------------


async def run_qrcode(spec: QrCode, source: Path, out: Path, tools: Tools) -> Output:
    """Errors: FopFailed for more than a code can hold."""
    text = "" if spec.content else download_url(tools)
    work = Work(spec=spec, source=str(source), out=str(out), text=text)
    await tools.fork("milepost.work.media.documents:work", work, None)  # type: ignore[arg-type]
    return Output.object(out, "image/png")


async def run_md2html(spec: Markdown, source: Path, out: Path, tools: Tools) -> Output:
    """Errors: FopFailed for what is no text."""
    work = Work(spec=spec, source=str(source), out=str(out))
    await tools.fork("milepost.work.media.documents:work", work, None)  # type: ignore[arg-type]
    return Output.object(out, "text/html")


def download_url(tools: Tools) -> str:
    """Where a client gets the source from."""
    settings, origin = tools.settings, tools.origin
    host = "localhost" if settings.host in ("0.0.0.0", "::", "") else settings.host  # noqa: S104
    host = f"[{host}]" if ":" in host else host
    base = settings.public_url.rstrip("/") if settings.public_url else f"http://{host}:{settings.port}"
    return f"{base}/objects/{quote(origin.bucket, safe='')}/{quote(origin.key)}"


# --- the work, in a child --------------------------------------------------------------------------------------------


@forked(Work)
def work(request: Work) -> None:
    """Do one command.  Errors: FopFailed."""
    match request.spec:
        case QrCode() as spec:
            draw_code(spec, read_limited(request.source, QR_BYTES_MAX) if spec.content else request.text.encode(), request.out)
        case Markdown() as spec:
            text = read_limited(request.source, MARKDOWN_BYTES_MAX)
            try:
                Path(request.out).write_text(render(spec, text.decode("utf-8-sig")), "utf-8")
            except UnicodeDecodeError:
                raise FopFailed("the source is no text in UTF-8") from None


def read_limited(source: str, bytes_max: int) -> bytes:
    """Errors: FopFailed when there is nothing, or more."""
    with Path(source).open("rb") as file:
        data = file.read(bytes_max + 1)
    if not data:
        raise FopFailed("source data is empty or fail to get source data")
    if len(data) > bytes_max:
        raise FopFailed(f"the source has more than {bytes_max} bytes")
    return data


def draw_code(spec: QrCode, data: bytes, out: str) -> None:
    """A PNG with a quiet zone.  Errors: FopFailed when it does not fit."""
    import segno

    try:
        content: str | bytes = data.decode()
    except UnicodeDecodeError:
        content = data
    try:
        code = segno.make_qr(content, error=spec.level, boost_error=False)
    except segno.DataOverflowError:
        raise FopFailed(f"{len(data)} bytes do not fit into a QR code of level {spec.level}") from None
    code.save(out, kind="png", scale=QR_SCALE)


def render(spec: Markdown, text: str) -> str:
    """HTML in which nothing of the text is markup but what Markdown made of it: tags are shown, script URLs are no links."""
    from markdown_it import MarkdownIt

    body: str = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"]).render(text)
    if spec.body_only:
        return body
    style = "" if spec.css is None else f'<link rel="stylesheet" href="{html.escape(spec.css)}">\n'
    return f'<!DOCTYPE html>\n<html>\n<head>\n<meta charset="utf-8">\n{style}</head>\n<body>\n{body}</body>\n</html>\n'


register(Command(name="qrcode", makes="object", parse=parse_qrcode, run=run_qrcode))
register(Command(name="md2html", makes="object", parse=parse_md2html, run=run_md2html))

__all__ = ["Markdown", "QrCode", "Work", "parse_md2html", "parse_qrcode", "render", "work"]
