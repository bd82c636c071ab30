"""The kind `import`: a disk image from a URL becomes an image that can be downloaded.

Steps, each of which finds what an earlier attempt left and goes on from there (`Import.run`):

| step    | what it leaves                                                        | where                          |
|---------|-----------------------------------------------------------------------|--------------------------------|
| record  | the image, `queued`; its id is derived from the job's                 | the store                      |
| fetch   | the source's bytes, as many as have come                              | `source` in the job's folder   |
| inspect | nothing: it is cheap and done again                                   |                                |
| convert | the image in the wanted format, when that is another one              | `converted` in the same folder |
| digest  | md5, sha512 and the object's key; the record is `saving`              | `stored.json`                  |
| store   | the bytes, whole and durable, under a key that no other attempt uses  | object storage                 |
| publish | the record, `active`                                                  | the store                      |

Rules
1. Every write of the record carries the job's fence: a worker that lost the job cannot change the image.
2. What a failed or cancelled import leaves: nothing.  A failed attempt that is retried, and one that a stopping server gives
   back, keep the folder and the record.  `sweep.py` removes what is left of jobs that ended while nobody ran them.
3. The folder is locked while an attempt works in it: a worker that was taken for dead and is not cannot mix its bytes in.
4. A user who deletes the image while it is imported ends the import.

Where this is stricter than Glance: `import_from_format` and `disk_format` are checked against the content; unsafe images are
refused; the container is `bare`; the owner is the job's project unless one is named (Glance: none).
Source: openstack/glance glance/async_/flows/base_import.py, glance/common/scripts/image_import/main.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from milepost import Conflict, Limits, NotFound, PermanentError, Resource, RetryableError, Running, kind
from milepost.egress import EgressPolicy
from milepost.image import DISK_FORMATS, IMAGE, Image, ImageStatus, Visibility, decode_image, encode_image
from milepost.work.convert import TARGETS, check_image, convert_image, needs_conversion
from milepost.work.fetch import NO_SPACE_DELAY_S, FetchLimits, fetch
from milepost.work.inspection import FORMATS, Inspected, inspect_image
from milepost.work.locks import locked
from milepost.work.threads import Stop, in_thread
from milepost.work.undo import undone

T = TypeVar("T")

OBJECTS = "images"  # the folder in object storage
DIGEST_PIECE_BYTES = 8 << 20
CHANGE_TRIES = 8
PROPERTIES_MAX = 128
PROPERTY_CHARS_MAX = 65_535  # of a property's value: what Glance's own column takes
TAGS_MAX = 128
NAMESPACE = uuid.UUID("6d1c1d60-6a4e-5c0b-9d0f-5a1f2f0f6f51")  # of image ids within job ids

# Source: openstack/glance glance/api/v2/images.py, the read-only, reserved and base properties.
RESERVED = frozenset(
    {
        "id", "status", "size", "virtual_size", "checksum", "os_hash_algo", "os_hash_value", "created_at", "updated_at",
        "deleted", "deleted_at", "self", "file", "schema", "direct_url", "locations", "stores", "members",
    }
)  # fmt: skip

SourceFormat = Literal["raw", "qcow2", "vmdk", "vhd", "vhdx", "vdi", "iso"]
assert SourceFormat.__args__ == FORMATS  # type: ignore[attr-defined]


# --- input and result ----------------------------------------------------------------------------------------------


class ImageProperties(msgspec.Struct, kw_only=True):
    """What the image shall be.  Keys that are not listed are custom properties: strings."""

    disk_format: Annotated[
        SourceFormat, Meta(description="format that the stored image has; another than the source's: converted")
    ]
    container_format: Annotated[Literal["bare"], Meta(description="what other containers hold would not be checked")]
    name: Annotated[str, Meta(max_length=255)] | None = None
    visibility: Visibility = Visibility.SHARED
    tags: Annotated[list[Annotated[str, Meta(max_length=255)]], Meta(max_length=TAGS_MAX)] = []
    min_disk: Annotated[int, Meta(ge=0, le=2**31 - 1, description="GiB")] = 0
    min_ram: Annotated[int, Meta(ge=0, le=2**31 - 1, description="MiB")] = 0
    protected: bool = False
    os_hidden: bool = False
    owner: Annotated[str, Meta(min_length=1, max_length=255, description="default: the job's project")] | None = None


_PROPERTIES_SCHEMA = {
    **msgspec.json.schema(ImageProperties)["$defs"]["ImageProperties"],
    "additionalProperties": {"type": ["string", "number", "null"]},
}
_PROPERTIES_SCHEMA["properties"]["visibility"] = {"enum": [str(one) for one in Visibility], "default": "shared"}


class ImportInput(msgspec.Struct, kw_only=True):
    """Where the image comes from and what it shall become."""

    import_from: Annotated[
        str, Meta(pattern="^https?://[^/]", max_length=8192, description="URL of the image file, http or https")
    ]
    import_from_format: Annotated[SourceFormat, Meta(description="format that the source has; its content must agree")]
    image_properties: Annotated[dict[str, Any], Meta(extra_json_schema=_PROPERTIES_SCHEMA)]

    def __post_init__(self) -> None:
        properties = self.properties()
        custom = self.custom_properties()
        if len(custom) > PROPERTIES_MAX:
            raise ValueError(f"More than {PROPERTIES_MAX} custom properties - at `$.image_properties`")
        if properties.disk_format != self.import_from_format and properties.disk_format not in TARGETS:
            raise ValueError(
                f"{self.import_from_format} cannot be converted to {properties.disk_format} - at `$.image_properties.disk_format`"
            )

    def properties(self) -> ImageProperties:
        """The properties that have a meaning.  Errors: ValueError with the path in msgspec's manner."""
        asked = self.image_properties.get("disk_format")
        if asked in DISK_FORMATS and asked not in FORMATS:
            raise ValueError(
                f"disk_format {asked} is not imported; supported: {', '.join(FORMATS)} - at `$.image_properties.disk_format`"
            )
        try:
            return msgspec.convert(self.image_properties, ImageProperties)
        except msgspec.ValidationError as error:
            message, _, path = str(error).partition(" - at `$")
            raise ValueError(f"{message} - at `$.image_properties{path.removesuffix('`')}`") from None

    def custom_properties(self) -> dict[str, str]:
        """The others: numbers become their text and null the empty string, as Glance has it.  Errors: ValueError."""
        custom: dict[str, str] = {}
        for name, value in self.image_properties.items():
            if name in ImageProperties.__struct_fields__:
                continue
            place = f"at `$.image_properties.{name[:80]}`"
            if name in RESERVED:
                raise ValueError(f"The property is reserved - {place}")
            if not 1 <= len(name) <= 255:
                raise ValueError("A property's name has 1 to 255 characters - at `$.image_properties`")
            if value is not None and not isinstance(value, str | int | float):
                raise ValueError(f"Expected `str`, got `{'object' if isinstance(value, dict) else 'array'}` - {place}")
            custom[name] = "" if value is None else str(value)
            if len(custom[name]) > PROPERTY_CHARS_MAX:
                raise ValueError(f"The value has more than {PROPERTY_CHARS_MAX} characters - {place}")
        return custom


class ImportResult(msgspec.Struct):
    """The image that was made."""

    image_id: str


def image_id_of(job_id: str) -> str:
    """The id of the image that this import makes: the same in every attempt."""
    return str(uuid.uuid5(NAMESPACE, job_id))


def object_key(image_id: str, fence: int) -> str:
    """Where one attempt stores the bytes: no other attempt ever writes there."""
    return f"{OBJECTS}/{image_id}/{fence}"


# --- the kind ------------------------------------------------------------------------------------------------------


@kind("import", queue="images", attempts=3)
async def import_image(job: Running, spec: ImportInput) -> ImportResult:
    """Fetch a disk image from a URL, check it, convert it where asked, store it, and publish it."""
    work = Import(job, spec)
    async with locked(job.scratch / "lock"), undone(job, lambda _: work.remove_everything()):
        result = await _name_disk_errors(work.run())
    return result  # noqa: RET504  (a type checker does not know that none of these swallows an error)


class Import:
    """One attempt of one import."""

    def __init__(self, job: Running, spec: ImportInput) -> None:
        self.job, self.spec = job, spec
        self.image_id = image_id_of(job.id)
        self.source = job.scratch / "source"
        self.converted = job.scratch / "converted"
        self.stored_file = job.scratch / "stored.json"

    async def run(self) -> ImportResult:
        """Every step, in order, each at most as far as it is not done."""
        image = await self.record()
        if image.status is not ImageStatus.ACTIVE:
            stored = await self.find_stored()
            if stored is None:
                stored = await self.store(*await self.prepare())
            await self.publish(stored)
            if self.job.claim.fence > 1:
                await self.remove_objects(but=stored.key)
        await in_thread(_empty, self.job.scratch)
        return ImportResult(self.image_id)

    # --- the record ----------------------------------------------------------------------------------------------------

    async def record(self) -> Image:
        try:
            return decode_image((await self.job.resources.get(IMAGE, self.image_id)).doc)
        except NotFound:
            pass
        asked, now_us = self.spec.properties(), self.job.now_us()
        gives_away = asked.visibility is Visibility.PUBLIC or asked.owner not in (None, self.job.project)
        if gives_away and self.job.job.origin.get("role") == "member":
            raise PermanentError("forbidden", "only an admin may import an image that is public or another project's")
        image = Image(
            id=self.image_id,
            name=asked.name,
            status=ImageStatus.QUEUED,
            visibility=asked.visibility,
            disk_format=asked.disk_format,
            container_format=asked.container_format,
            owner=asked.owner or self.job.project,
            protected=asked.protected,
            min_ram=asked.min_ram,
            min_disk=asked.min_disk,
            os_hidden=asked.os_hidden,
            tags=list(dict.fromkeys(asked.tags)),
            properties=self.spec.custom_properties(),
            job_id=self.job.id,
            created_us=now_us,
            updated_us=now_us,
        )
        await self.job.resources.put(self.resource(image), if_version=0)
        return image

    def resource(self, image: Image) -> Resource:
        return Resource(
            type=IMAGE,
            id=image.id,
            project=self.job.job.project,
            doc=encode_image(image),
            created_us=image.created_us,
            updated_us=image.updated_us,
            version=0,
        )

    async def change(self, **values: Any) -> None:
        """Change the record beside whoever else changes it.

        Errors: PermanentError when it was deleted, Conflict when another worker has the job.
        """
        for tries_left in reversed(range(CHANGE_TRIES)):
            try:
                found = await self.job.resources.get(IMAGE, self.image_id)
            except NotFound:
                raise PermanentError("image_deleted", "The image was deleted while it was imported.") from None
            image = msgspec.structs.replace(decode_image(found.doc), updated_us=self.job.now_us(), **values)
            try:
                await self.job.resources.put(self.resource(image), if_version=found.version)
            except Conflict:
                if not tries_left:
                    raise
            else:
                return

    # --- the bytes -----------------------------------------------------------------------------------------------------

    async def prepare(self) -> tuple[Path, Inspected]:
        """The file that is to be stored, checked."""
        settings, job = self.job.settings, self.job
        wanted = self.spec.properties().disk_format
        await fetch(
            self.spec.import_from,
            self.source,
            policy=EgressPolicy.from_settings(settings),
            limits=FetchLimits(bytes_max=settings.image_bytes_max),
            on_progress=lambda done, total: job.progress(done, total, "fetching", unit="bytes"),
        )
        stop = Stop()
        found = await in_thread(
            lambda: inspect_image(
                self.source, self.spec.import_from_format, virtual_bytes_max=settings.image_virtual_bytes_max, stop=stop
            ),
            stop=stop,
        )
        limits = Limits(memory_bytes=settings.convert_memory_bytes, cpu_s=settings.convert_cpu_s)
        await check_image(self.source, found, limits=limits)
        if not needs_conversion(found.format, wanted):
            return self.source, found
        for left in job.scratch.glob("converted.*"):
            left.unlink()
        partial = job.scratch / f"converted.{job.claim.fence}"
        result = await convert_image(
            self.source,
            partial,
            found,
            wanted,
            limits=limits,
            bytes_max=settings.image_bytes_max,
            on_progress=lambda done, total: job.progress(done, total, f"converting to {wanted}", unit="bytes"),
        )
        partial.replace(self.converted)
        return self.converted, result

    async def store(self, path: Path, found: Inspected) -> Stored:
        await self.change(status=ImageStatus.SAVING)
        md5, sha512 = await self.digest(path, found.size)
        stored = Stored(
            key=object_key(self.image_id, self.job.claim.fence),
            size=found.size,
            virtual_size=found.virtual_size or None,  # of an empty file, as in Glance
            md5=md5,
            sha512=sha512,
        )
        await in_thread(_write_durably, self.stored_file, msgspec.json.encode(stored))

        async def report(done: int) -> None:
            await self.job.progress(done, found.size, "storing", unit="bytes")

        await self.job.objects.put_file(stored.key, path, on_progress=report)
        return stored

    async def digest(self, path: Path, size: int) -> tuple[str, str]:
        """md5 and sha512 in one pass, each in a thread of its own: hashlib lets go of the interpreter's lock."""
        md5, sha512 = hashlib.md5(usedforsecurity=False), hashlib.sha512()
        done = 0
        with await in_thread(path.open, "rb") as file:
            while piece := await in_thread(file.read, DIGEST_PIECE_BYTES):
                await asyncio.gather(in_thread(md5.update, piece), in_thread(sha512.update, piece))
                done += len(piece)
                await self.job.progress(done, size, "checking", unit="bytes")
        return md5.hexdigest(), sha512.hexdigest()

    async def find_stored(self) -> Stored | None:
        """What an earlier attempt stored and could not publish any more."""
        try:
            stored = msgspec.json.decode(await in_thread(self.stored_file.read_bytes), type=Stored)
        except (FileNotFoundError, msgspec.DecodeError):
            return None
        return stored if await self.job.objects.size_bytes(stored.key) == stored.size else None

    async def publish(self, stored: Stored) -> None:
        await self.change(
            status=ImageStatus.ACTIVE,
            object_key=stored.key,
            size=stored.size,
            virtual_size=stored.virtual_size,
            checksum=stored.md5,
            os_hash_algo="sha512",
            os_hash_value=stored.sha512,
        )

    # --- the end, when it is no good one ------------------------------------------------------------------------------

    async def remove_everything(self) -> None:
        """Nothing of this import is left: no record, no object, no file.

        Without the job's lease nothing is touched, not even the own object: the worker that has the job now may have
        published it.
        """
        try:
            await self.job.resources.delete(IMAGE, self.image_id)
        except Conflict:
            return
        await self.remove_objects()
        await in_thread(_empty, self.job.scratch)

    async def remove_objects(self, *, but: str | None = None) -> None:
        """What this and earlier attempts stored."""
        for fence in range(1, self.job.claim.fence + 1):
            key = object_key(self.image_id, fence)
            if key != but:
                await self.job.objects.delete(key)


class Stored(msgspec.Struct, kw_only=True):
    """What was put into object storage, or is about to be."""

    key: str
    size: int
    virtual_size: int | None
    md5: str
    sha512: str


async def _name_disk_errors(running: Coroutine[Any, Any, T]) -> T:
    """A full disk is retried: it gets emptied, and everything that has come so far is kept."""
    try:
        return await running
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise RetryableError("no_space", f"The disk is full ({error}): free some space.", delay_s=NO_SPACE_DELAY_S) from error


def _empty(folder: Path) -> None:
    """Only the lock stays: it is held."""
    for entry in _entries(folder):
        if entry.name != "lock":
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink(missing_ok=True)


def _entries(folder: Path) -> Iterator[Path]:
    with contextlib.suppress(FileNotFoundError):
        yield from list(folder.iterdir())


def _write_durably(path: Path, data: bytes) -> None:
    temporary = path.with_name(path.name + ".new")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


__all__ = ["ImageProperties", "ImportInput", "ImportResult", "image_id_of", "import_image", "object_key"]
