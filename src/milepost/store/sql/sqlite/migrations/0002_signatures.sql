-- Signatures of requests that changed something: each is accepted once within the window of its date, also after a restart.

CREATE TABLE signature (digest TEXT PRIMARY KEY, expires_us INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX signature_expires ON signature (expires_us);
