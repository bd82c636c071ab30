"""Picture commands, done by libvips in a forked child with limits: see `pictures.py` for their texts.

The fork server imports this module once and starts nothing; each child does one `work` and ends.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pyvips

from milepost.work.media import encode
from milepost.work.media.child import forked
from milepost.work.media.commands import FopFailed
from milepost.work.media.exif import ORIENTATIONS, read_exif
from milepost.work.media.marks import animate, draw_marks, round_corners, slim
from milepost.work.media.raster import ANIMATED, Photo, flat, restrict
from milepost.work.media.spec import Animate, Average, Color, Done, Exif, ImageInfo, Picture, RoundPic, Slim, Watermark, Work

_WARM = ("jpegload", "jpegsave", "thumbnail", "thumbnail_image", "pngload", "pngsave", "webpload", "webpsave", "crop", "autorot")


def _warm() -> None:
    """What the binding makes at its first use is made before anything is forked.  No pixel is computed: that starts threads."""
    for name in _WARM:
        pyvips.Introspect.get(name)
    for name in ("jpegload", "thumbnail"):
        getattr(pyvips.Image, name)  # its documentation, which is written at the first look
    image = pyvips.Image.new_from_memory(bytes(8 * 6 * 3), 8, 6, 3, "uchar").copy(interpretation="srgb")
    small = image.thumbnail_image(4, height=3, size="force", no_rotate=True).crop(0, 0, 2, 2)
    for field in small.get_fields():
        small.get(field)
    try:
        pyvips.Image.jpegload("/dev/null", fail_on="error").jpegsave("/dev/null", Q=75, interlace=False, keep=0)
    except pyvips.Error:  # it is no picture
        pass


restrict()
_warm()


@forked(Work)
def work(request: Work) -> Done:
    """Do one command.  Errors: FopFailed."""
    os.environ["TMPDIR"] = request.temporary
    try:
        photo = Photo(request.source, request.limits)
        match request.spec:
            case Picture() as spec:
                return transform(photo, spec, request.out)
            case Watermark() as spec:
                return draw_marks(photo, spec, request.marks, request.out)
            case RoundPic() as spec:
                return round_corners(photo, spec, request.out)
            case Slim() as spec:
                return slim(photo, spec, request.out)
            case Animate() as spec:
                return animate(photo, spec, [file for file in request.marks if file is not None], request.out)
            case ImageInfo():
                return Done(result=info(photo))
            case Exif():
                return Done(result=read_exif(photo.header))
            case Average():
                return Done(result=average(photo))
    except pyvips.Error as error:
        raise FopFailed(explain(error)) from None


def explain(error: pyvips.Error) -> str:
    """What libvips says, in one line and without paths of this machine."""
    lines = [line.strip() for line in str(error).splitlines()[1:] if line.strip()]
    text = "; ".join(dict.fromkeys(re.sub(r"/\S+", "the file", line) for line in lines)) or str(error)
    return f"invalid picture: {text}"[:500]


def transform(photo: Photo, spec: Picture, out: str) -> Done:
    """imageView2, imageView, imageMogr2."""
    made = encode.output_format(photo, spec.save)
    if any(type(op).__name__ == "Blur" for op in spec.ops) and photo.format == "gif":
        raise FopFailed("blur is not for gif")
    photo.change(spec.ops, animated=made in ANIMATED, background=spec.background, border=spec.border_color)
    return encode.write(photo, out, spec.save, spec.background)


# --- answers -----------------------------------------------------------------------------------------------------------


def info(photo: Photo) -> dict[str, Any]:
    """Width and height as they are stored, whatever the orientation."""
    answer: dict[str, Any] = {
        "size": Path(photo.path).stat().st_size,
        "format": photo.format,
        "width": photo.width,
        "height": photo.page_height,
        "colorModel": _color_model(photo),
    }
    if photo.format == "gif":
        answer["frameNumber"] = photo.pages
    if "orientation" in photo.has_fields and photo.orientation in ORIENTATIONS:
        answer["orientation"] = ORIENTATIONS[photo.orientation]
    return answer


def _color_model(photo: Photo) -> str:
    """In the words of Go's image/color, as the service has them."""
    header = photo.header
    deep = "64" if header.format == "ushort" else ""
    if photo.format == "gif":
        return "palette16"
    if header.interpretation == "cmyk":
        return "cmyk"
    if header.bands < 3 and not header.hasalpha():
        return "gray16" if deep else "gray"
    if photo.format in ("jpeg", "webp", "avif", "heic") and not header.hasalpha():
        return "ycbcr"
    return f"nrgba{deep}"


def average(photo: Photo) -> dict[str, str]:
    """The mean of all pixels, on white where they are clear."""
    photo.change((), animated=False, background=Color(), border=Color())
    image = flat(photo.frames[0].colourspace("srgb").cast("uchar"))
    means = [row[4] for row in image.stats().tolist()[1:]]
    return {"RGB": "0x" + "".join(f"{int(mean + 0.5):02x}" for mean in means)}


__all__ = ["work"]
