"""A database with as many finished jobs as wanted, each with its three events, made once and kept under build/.

Shape: seven in ten are no-ops, three are image imports; one in ten belongs to another project; one in a hundred failed, one in
two hundred was cancelled; one in twenty has a label, of ten values; they ended over the last day before they were made, and
expire in a hundred years, so that the pruner leaves them alone.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import sqlite3
import time
from pathlib import Path

from bench.room import BUILD
from milepost.settings import Settings
from milepost.store import sqlite
from milepost.wiring import open_store

LABEL, LABEL_VALUES = "team", 10
DAY_US = 86_400_000_000
HUNDRED_YEARS_US = 36_525 * DAY_US

# :n rows; ids are UUIDv7 in shape and order: 48 bits of milliseconds, then what tells rows of one millisecond apart.
NUMBERS = """
CREATE TEMP TABLE number (i INTEGER PRIMARY KEY, id TEXT, at_us INTEGER);
WITH RECURSIVE count (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM count WHERE i < {rows})
INSERT INTO number
SELECT i,
       format('%08x-%04x-7%03x-8%03x-%012x', at_ms >> 16, at_ms & 65535, i & 4095, abs(random()) % 4096,
              abs(random()) % 281474976710656),
       at_ms * 1000
  FROM (SELECT i, ({start_us} + i * {step_us}) / 1000 AS at_ms FROM count);
"""

JOBS = """
INSERT INTO job (id, kind, state, project, queue, priority, due, run_at_us, attempt, attempts_max, root_id, created_us,
                 started_us, ended_us, updated_us, expires_us, version, fence, labels, origin, error, input, result)
SELECT id,
       CASE WHEN i % 10 < 3 THEN 'import' ELSE 'noop' END,
       CASE WHEN i % 100 = 0 THEN 'failed' WHEN i % 200 = 50 THEN 'cancelled' ELSE 'succeeded' END,
       CASE WHEN i % 10 = 9 THEN 'other' ELSE 'default' END,
       CASE WHEN i % 10 < 3 THEN 'images' ELSE 'default' END,
       5, 1, at_us, 1, 1, id, at_us, at_us + 1000, at_us + 3000, at_us + 3000, {expires_us}, 3, 1,
       CASE WHEN i % 20 = 7 THEN '{{"team":"t' || (i / 20 % 10) || '"}}' END,
       '{{"request_id":"req-' || id || '","user_id":"anyone"}}',
       CASE WHEN i % 100 = 0 THEN '{{"code":"download_failed","message":"the source answered 404"}}'
            WHEN i % 200 = 50 THEN '{{"code":"cancelled","message":"cancelled on request"}}' END,
       CASE WHEN i % 10 < 3 THEN '{{"import_from":"http://127.0.0.1/images/' || i || '.raw","import_from_format":"raw",'
                              || '"image_properties":{{"disk_format":"raw","container_format":"bare","name":"image ' || i
                              || '"}}}}'
            ELSE '{{}}' END,
       CASE WHEN i % 100 = 0 OR i % 200 = 50 THEN NULL
            WHEN i % 10 < 3 THEN '{{"image_id":"' || id || '"}}' ELSE 'null' END
  FROM number ORDER BY i;

INSERT INTO job_label (project, key, value, job_id)
SELECT 'default', 'team', 't' || (i / 20 % 10), id FROM number WHERE i % 20 = 7 ORDER BY 3, i;

INSERT INTO event (id, job_id, seq, type, state, at_us)
SELECT number.i * 3 - 3 + step.seq, job.id, step.seq,
       CASE step.seq WHEN 1 THEN 'submitted' WHEN 2 THEN 'started' ELSE job.state END,
       CASE step.seq WHEN 1 THEN 'ready' WHEN 2 THEN 'running' ELSE job.state END,
       number.at_us + (step.seq - 1) * 1000
  FROM number CROSS JOIN (SELECT 1 AS seq UNION ALL SELECT 2 UNION ALL SELECT 3) AS step JOIN job ON job.id = number.id
 ORDER BY number.i, step.seq;
"""


def full_database(rows: int) -> Path:
    """The folder whose database has that many finished jobs; made when it is not there or the schema has changed.

    A figure that writes works on a copy.
    """
    folder = BUILD / f"finished-{rows}-{_schema()}"
    path = folder / "milepost.db"
    if not path.is_file():
        for old in BUILD.glob(f"finished-{rows}-*"):
            shutil.rmtree(old)
        made = BUILD / f"{folder.name}.part"
        asyncio.run(_make_empty(made))
        _fill(made / "milepost.db", rows)
        made.rename(folder)
    return folder


def _schema() -> str:
    folder = Path(sqlite.__file__).parent / "sql" / "sqlite" / "migrations"
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for file in sorted(folder.glob("*.sql")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:8]


async def _make_empty(folder: Path) -> None:
    for name in ("milepost.db", "milepost.db-wal", "milepost.db-shm"):
        (folder / name).unlink(missing_ok=True)
    async with open_store(Settings(data=str(folder))):
        pass


def _fill(path: Path, rows: int) -> None:
    now_us = time.time_ns() // 1000
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = OFF")  # a database that is not finished is thrown away
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute("PRAGMA cache_size = -262144")
    values = {"rows": rows, "start_us": now_us - DAY_US, "step_us": DAY_US // rows, "expires_us": now_us + HUNDRED_YEARS_US}
    connection.executescript("BEGIN;" + NUMBERS.format_map(values) + JOBS.format_map(values) + "COMMIT;")
    (count,) = connection.execute("SELECT COUNT(*) FROM job").fetchone()
    assert count == rows
    connection.execute("PRAGMA journal_mode = WAL")
    connection.close()
