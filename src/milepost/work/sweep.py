"""What imports leave behind when they end while nobody runs them: cancelled between two attempts, failed as poison, overdue.

Theory: an import cleans up after itself in its own process.  What is left are records and objects of jobs that became final
without their function being there.  A final state never changes, and a record can be changed only under the fence of a running
job; so what belongs to a job that is final and did not succeed is nobody's, and may go at any time, beside running imports.

Rules
1. A record that is not active goes when its job is final, expired or unknown.  An active one goes when its job failed or was
   cancelled: it was published in an attempt that died before its job could end.
2. Objects of a removed record go with it.  In a local folder, objects without a record go too once they are an hour old.  In a
   bucket they stay: another server may keep its images there.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import structlog

from milepost.errors import NotFound
from milepost.image import IMAGE, Image, ImageStatus, decode_image
from milepost.job import FINAL, Job, JobId, State
from milepost.store import JobQuery
from milepost.work.images import OBJECTS

if TYPE_CHECKING:
    from milepost.store import Store
    from milepost.store.objects import ObjectStore

log = structlog.get_logger("milepost.images")

PAGE = 500
UNREFERENCED_S = 3600.0


async def sweep(store: Store, objects: ObjectStore) -> int:
    """Nothing of an ended import is left but images.  How many records and objects were removed."""
    images = {resource.id: decode_image(resource.doc) for resource in await store.list_resources(IMAGE)}
    published = [image for image in images.values() if _is_published(image)]
    unsuccessful = await _unsuccessful(store, published)
    dead = [image for image in published if image.job_id in unsuccessful]
    dead += [image for image in images.values() if not _is_published(image) and await _has_ended(store, image.job_id)]
    removed = 0
    for image in dead:
        await store.delete_resource(IMAGE, image.id)
        removed += 1 + await _delete(objects, [entry.key for entry in await objects.list_keys(f"{OBJECTS}/{image.id}")])
        log.warning("what was left of an import is removed", image_id=image.id, job_id=image.job_id)
    if objects.root is not None:
        removed += await _delete(objects, await _unreferenced(store, objects))
        removed += await objects.sweep_temporary()
    return removed


async def _has_ended(store: Store, job_id: str | None) -> bool:
    if job_id is None:
        return False  # not made by an import
    try:
        found = await store.get_job(JobId(job_id))
    except NotFound:
        return True
    return not isinstance(found, Job) or found.state in FINAL


async def _unsuccessful(store: Store, images: Sequence[Image]) -> set[str]:
    """The jobs of these images that failed or were cancelled."""
    job_ids = [JobId(image.job_id) for image in images if image.job_id is not None]
    found: set[str] = set()
    for start in range(0, len(job_ids), PAGE):
        page = tuple(job_ids[start : start + PAGE])
        found |= {job.id for job in await store.list_jobs(JobQuery(ids=page, states=(State.FAILED, State.CANCELLED), limit=PAGE))}
    return found


def _is_published(image: Image) -> bool:
    return image.status not in (ImageStatus.QUEUED, ImageStatus.SAVING)


async def _unreferenced(store: Store, objects: ObjectStore) -> list[str]:
    """Old objects that no record names.  Listed before the records are read: whatever is stored has its record before."""
    oldest_us = int((time.time() - UNREFERENCED_S) * 1e6)
    old = [entry.key for entry in await objects.list_keys(OBJECTS) if entry.modified_us < oldest_us]
    if not old:
        return []
    images = {resource.id: decode_image(resource.doc) for resource in await store.list_resources(IMAGE)}
    return [key for key in old if not _belongs(key, images)]


def _belongs(key: str, images: dict[str, Image]) -> bool:
    image = images.get(key.split("/")[1]) if key.count("/") == 2 else None
    if image is None:
        return False
    return image.object_key == key or not _is_published(image)  # an import that still runs is left alone


async def _delete(objects: ObjectStore, keys: Sequence[str]) -> int:
    return sum([await objects.delete(key) for key in keys])


__all__ = ["sweep"]
