"""Uploads in one request: the form of `POST /`, and base64 in `POST /putb64`.

Source: qiniu/python-sdk qiniu/services/storage/uploaders/form_uploader.py; qiniu/go-sdk storage/base64_upload.go.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable

from starlette.responses import Response

from milepost.server.facades.qiniu.endpoint import Call, header_token, refusal_of
from milepost.server.facades.qiniu.finish import Upload, begin_upload, finish_upload
from milepost.server.facades.qiniu.form import Form, read_form
from milepost.server.facades.qiniu.incoming import body_chunks, drain, open_sink
from milepost.store.buckets import Place
from milepost.wire.qiniu import errors
from milepost.wire.qiniu.errors import Refusal
from milepost.wire.qiniu.objects import read_pairs, read_text
from milepost.wire.qiniu.policy import Policy, check_client_key, split_custom

BASE64_BYTES_MAX = 64 << 20  # an upload by base64 is for what a page has in memory


async def upload_form(call: Call) -> Response:
    """`POST /`."""
    try:
        return await _upload_form(call)
    except Exception as error:
        if refusal_of(error) is not None:
            await drain(call)
        raise


async def _upload_form(call: Call) -> Response:
    begun: list[tuple[Policy, Place]] = []

    async def begin(fields: dict[str, str]) -> None:
        """What came before the file is checked before the file is read."""
        if "token" in fields:
            begun.append(await begin_upload(call, fields["token"]))
            policy = begun[0][0]
            sink.lower_limit(policy.fsize_limit)
            if "key" in fields:
                check_client_key(policy, fields["key"])

    async with open_sink(call.state) as sink:
        form = await read_form(call, sink, begin)
        policy, place = begun[0] if begun else await begin_upload(call, form.fields.get("token") or header_token(call))
        _check_crc32(form)
        upload = Upload(
            policy=policy,
            place=place,
            file=form.file,
            key=form.fields.get("key"),
            fname=form.fname,
            mime_type=form.mime_type,
            custom=split_custom(form.fields),
        )
        response = await finish_upload(call, upload)
    accept = form.fields.get("accept")
    if accept and response.status_code == 200 and accept.partition(";")[0].strip() in ("text/plain", "application/json"):
        response.headers["content-type"] = accept.partition(";")[0].strip()
    return response


def _check_crc32(form: Form) -> None:
    given = form.fields.get("crc32")
    if given is None or given == "":
        return
    if not (given.isascii() and given.isdigit() and len(given) <= 10):
        raise Refusal(errors.BAD_REQUEST, f"crc32 is {given[:40]!r}; it takes a decimal number")
    if int(given) != form.file.crc32:
        raise Refusal(errors.BAD_CRC, "crc32 does not match: the file did not arrive as it was sent")


async def upload_base64(call: Call) -> Response:
    """`POST /putb64/<size>[/key/<b64>][/mimeType/<b64>][/crc32/<n>][/x:name/<b64>]`; size -1 is any."""
    try:
        return await _upload_base64(call)
    except Exception as error:
        if refusal_of(error) is not None:
            await drain(call)
        raise


async def _upload_base64(call: Call) -> Response:
    policy, place = await begin_upload(call, header_token(call))
    size, _, rest = call.params["rest"].partition("/")
    pairs = read_pairs(rest, ("key", "mimeType", "crc32", "fname"))
    texts = {name: read_text(value, name) for name, value in pairs.items() if name != "crc32"}
    async with open_sink(call.state, limit_bytes=BASE64_BYTES_MAX) as sink:
        decode = _decoder()
        async for chunk in body_chunks(call, limit_bytes=BASE64_BYTES_MAX * 4 // 3 + 4096):
            await sink.write(decode(chunk, False))
        await sink.write(decode(b"", True))
        file = await sink.finish()
        if size not in ("-1", str(file.size_bytes)):
            raise Refusal(errors.BAD_REQUEST, f"the path says {size[:20]} bytes and {file.size_bytes} came")
        if "crc32" in pairs and pairs["crc32"] != str(file.crc32):
            raise Refusal(errors.BAD_CRC, "crc32 does not match: the file did not arrive as it was sent")
        upload = Upload(
            policy=policy,
            place=place,
            file=file,
            key=texts.get("key"),
            fname=texts.get("fname", ""),
            mime_type=texts.get("mimeType"),
            custom=split_custom(texts),
        )
        return await finish_upload(call, upload)


def _decoder() -> Callable[[bytes, bool], bytes]:
    """Base64 of either alphabet, in pieces.  Errors: Refusal."""
    carry = b""

    def decode(data: bytes, last: bool) -> bytes:
        nonlocal carry
        carry += b"".join(data.split()).replace(b"-", b"+").replace(b"_", b"/")
        cut = len(carry) if last else len(carry) // 4 * 4 - 4  # the last four may have padding
        if cut <= 0 and not last:
            return b""
        piece, carry = carry[:cut], carry[cut:]
        try:
            return base64.b64decode(piece + b"=" * (-len(piece) % 4 if last else 0), validate=True)
        except binascii.Error as error:
            raise Refusal(errors.BAD_REQUEST, f"the body is no base64: {error}") from None

    return decode
