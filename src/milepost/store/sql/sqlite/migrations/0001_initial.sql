-- Everything a Milepost server must not lose.  Instants are Unix microseconds (UTC); JSON is stored as text.
-- The CHECKs and partial indexes of job do without IN: SQLite builds a temporary table for it each time a statement runs.

CREATE TABLE job (
  id              TEXT PRIMARY KEY,             -- UUIDv7: rows are appended in the order of their keys
  kind            TEXT NOT NULL,
  state           TEXT NOT NULL CHECK (state = 'succeeded' OR state = 'running' OR state = 'ready' OR state = 'failed'
                                      OR state = 'cancelled' OR state = 'held' OR state = 'waiting'),
  project         TEXT NOT NULL,
  queue           TEXT NOT NULL,
  priority        INTEGER NOT NULL,
  due             INTEGER NOT NULL,             -- 1 once run_at_us has passed: set by the scheduler
  run_at_us       INTEGER NOT NULL,
  attempt         INTEGER NOT NULL DEFAULT 0,
  attempts_max    INTEGER NOT NULL,
  crashes         INTEGER NOT NULL DEFAULT 0,
  timeout_s       REAL,
  deadline_us     INTEGER,
  parent_id       TEXT,
  root_id         TEXT NOT NULL,
  position        INTEGER NOT NULL DEFAULT 0,
  sub_total       INTEGER NOT NULL DEFAULT 0,
  retry_of        TEXT,
  cancel_reason   TEXT,                         -- not null once a cancel was asked for
  callback_url    TEXT,
  idempotency_key TEXT,
  body_hash       TEXT,
  created_us      INTEGER NOT NULL,
  started_us      INTEGER,
  ended_us        INTEGER,
  updated_us      INTEGER NOT NULL,
  expires_us      INTEGER,
  version         INTEGER NOT NULL,             -- the seq of the job's last event
  fence           INTEGER NOT NULL DEFAULT 0,
  lease_by        TEXT,
  labels          TEXT,
  origin          TEXT,
  progress        TEXT,
  error           TEXT,
  input           TEXT NOT NULL,
  result          TEXT,
  CHECK ((state = 'succeeded' OR state = 'failed' OR state = 'cancelled') = (ended_us IS NOT NULL)),
  CHECK ((state = 'running') = (lease_by IS NOT NULL))
) WITHOUT ROWID;

CREATE INDEX job_due       ON job (queue, priority, run_at_us, id) WHERE state = 'ready' AND due = 1;
CREATE INDEX job_scheduled ON job (run_at_us, queue) WHERE state = 'ready' AND due = 0;
CREATE INDEX job_running   ON job (lease_by, queue) WHERE state = 'running';
CREATE INDEX job_parked    ON job (state, queue) WHERE state = 'held' OR state = 'waiting';
CREATE INDEX job_sub       ON job (parent_id, position) WHERE parent_id IS NOT NULL;
CREATE INDEX job_open_sub  ON job (parent_id) WHERE parent_id IS NOT NULL AND ended_us IS NULL;
CREATE INDEX job_tree      ON job (root_id) WHERE parent_id IS NOT NULL;
CREATE INDEX job_deadline  ON job (deadline_us) WHERE deadline_us IS NOT NULL AND ended_us IS NULL;
CREATE INDEX job_crashed   ON job (queue, priority, run_at_us, id) WHERE crashes > 0 AND ended_us IS NULL;
CREATE INDEX job_expiry    ON job (expires_us) WHERE expires_us IS NOT NULL;
CREATE INDEX job_project   ON job (project, id) WHERE parent_id IS NULL;
CREATE INDEX job_kind      ON job (kind, project, id) WHERE parent_id IS NULL;
CREATE INDEX job_kind_all  ON job (kind, id) WHERE parent_id IS NULL;
CREATE INDEX job_bad       ON job (project, id) WHERE parent_id IS NULL AND ended_us IS NOT NULL AND state <> 'succeeded';
CREATE INDEX job_bad_all   ON job (id) WHERE parent_id IS NULL AND ended_us IS NOT NULL AND state <> 'succeeded';
CREATE UNIQUE INDEX job_idempotency ON job (project, idempotency_key) WHERE idempotency_key IS NOT NULL;

CREATE TABLE job_label (
  project TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, job_id TEXT NOT NULL,
  PRIMARY KEY (key, value, job_id)
) WITHOUT ROWID;
CREATE INDEX job_label_job ON job_label (job_id);

CREATE TABLE event (
  id     INTEGER PRIMARY KEY,                   -- grows over all jobs, never used twice
  job_id TEXT NOT NULL,
  seq    INTEGER NOT NULL,
  type   TEXT NOT NULL,
  state  TEXT NOT NULL,
  at_us  INTEGER NOT NULL,
  data   TEXT
);
CREATE UNIQUE INDEX event_job ON event (job_id, seq);

CREATE TABLE tombstone (
  id TEXT PRIMARY KEY, project TEXT NOT NULL, kind TEXT NOT NULL, state TEXT NOT NULL,
  ended_us INTEGER NOT NULL, expired_us INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX tombstone_expired ON tombstone (expired_us);

CREATE TABLE worker (id TEXT PRIMARY KEY, lease_until_us INTEGER NOT NULL) WITHOUT ROWID;

CREATE TABLE queue (name TEXT PRIMARY KEY, job_limit INTEGER, paused INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;

CREATE TABLE delivery (
  id TEXT PRIMARY KEY, job_id TEXT NOT NULL, project TEXT NOT NULL, url TEXT NOT NULL, event TEXT NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('pending','delivered','given_up')),
  attempt INTEGER NOT NULL DEFAULT 0, sending INTEGER NOT NULL DEFAULT 0, next_us INTEGER NOT NULL, created_us INTEGER NOT NULL, ended_us INTEGER,
  last_status INTEGER, last_error TEXT
) WITHOUT ROWID;
CREATE INDEX delivery_due ON delivery (next_us) WHERE state = 'pending';
CREATE INDEX delivery_job ON delivery (job_id);
CREATE INDEX delivery_ended ON delivery (ended_us) WHERE ended_us IS NOT NULL;

CREATE TABLE resource (
  type TEXT NOT NULL, id TEXT NOT NULL, project TEXT NOT NULL, doc TEXT NOT NULL,
  created_us INTEGER NOT NULL, updated_us INTEGER NOT NULL, version INTEGER NOT NULL,
  PRIMARY KEY (type, id)
) WITHOUT ROWID;
CREATE INDEX resource_list ON resource (type, created_us, id);

CREATE TABLE project (
  id TEXT PRIMARY KEY, name TEXT NOT NULL, domain TEXT NOT NULL, callback_secret TEXT NOT NULL,
  created_us INTEGER NOT NULL, enabled INTEGER NOT NULL, UNIQUE (domain, name)
) WITHOUT ROWID;

CREATE TABLE user (
  id TEXT PRIMARY KEY, name TEXT NOT NULL, domain TEXT NOT NULL, password_hash TEXT NOT NULL,
  created_us INTEGER NOT NULL, enabled INTEGER NOT NULL, UNIQUE (domain, name)
) WITHOUT ROWID;

CREATE TABLE role (user_id TEXT NOT NULL, project TEXT NOT NULL, role TEXT NOT NULL, PRIMARY KEY (user_id, project, role)) WITHOUT ROWID;

CREATE TABLE token (
  digest TEXT PRIMARY KEY, user_id TEXT NOT NULL, project TEXT, roles TEXT NOT NULL, methods TEXT NOT NULL, audit_id TEXT NOT NULL,
  issued_us INTEGER NOT NULL, expires_us INTEGER NOT NULL, revoked INTEGER NOT NULL, name TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX token_user ON token (user_id);
CREATE INDEX token_expiry ON token (expires_us);

CREATE TABLE access_key (
  id TEXT PRIMARY KEY, secret TEXT NOT NULL, user_id TEXT NOT NULL, project TEXT NOT NULL,
  created_us INTEGER NOT NULL, enabled INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO meta (key, value) VALUES ('last_event_id', 0);
