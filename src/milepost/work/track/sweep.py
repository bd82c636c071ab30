"""What the tracker leaves behind, removed; and credentials sealed with the server's newest key."""

from __future__ import annotations

import structlog

from milepost import Conflict, InvalidInput, NotFound
from milepost.job import JobId, Tombstone
from milepost.settings import Settings
from milepost.store import Store
from milepost.store.credentials import reseal
from milepost.tracking import CREDENTIAL, TRACKED
from milepost.vault import open_vault

log = structlog.get_logger("milepost.track")

PAGE = 500


async def sweep(store: Store, settings: Settings) -> int:
    """Records of jobs that are gone are gone; returns how many were removed."""
    removed, after = 0, None
    while True:
        page = await store.page_resources(TRACKED, after=after, limit=PAGE)
        for found in page:
            if await _is_gone(store, JobId(found.id)):
                removed += await store.delete_resource(TRACKED, found.id)
        if len(page) < PAGE:
            break
        after = page[-1].id
    await renew_seals(store, settings)
    return removed


async def _is_gone(store: Store, job_id: JobId) -> bool:
    try:
        return isinstance(await store.get_job(job_id), Tombstone)
    except NotFound:
        return True


async def renew_seals(store: Store, settings: Settings) -> None:
    """A rotated key is in use everywhere; without any key nothing happens."""
    if not await store.page_resources(CREDENTIAL, limit=1):
        return
    try:
        changed = await reseal(store, open_vault(settings))
    except (Conflict, InvalidInput) as error:
        log.warning("credentials cannot be opened", error=error.message, hint=error.hint)
        return
    if changed:
        log.info("credentials sealed with the newest key", count=changed)
