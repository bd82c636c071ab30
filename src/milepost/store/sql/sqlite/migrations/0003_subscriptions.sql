-- Subscriptions: who is told of a project's events, and how far each has been told; deliveries that come of them.

CREATE TABLE subscription (
  id TEXT PRIMARY KEY, project TEXT NOT NULL, url TEXT NOT NULL, description TEXT NOT NULL, filter TEXT NOT NULL,
  secret TEXT NOT NULL, old_secret TEXT, old_secret_until_us INTEGER,
  state TEXT NOT NULL CHECK (state IN ('active','paused')), reason TEXT,
  revision INTEGER NOT NULL,                    -- grows with each change by its owner
  cursor INTEGER NOT NULL,                      -- id of the last event that deliveries were made for, or passed over
  missed_until INTEGER NOT NULL DEFAULT 0,      -- id of the last pruned event that it was told of
  made INTEGER NOT NULL DEFAULT 0,              -- deliveries so far: the number of the last one
  given_up INTEGER NOT NULL DEFAULT 0,          -- deliveries given up since the last one that came
  created_us INTEGER NOT NULL, updated_us INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX subscription_project ON subscription (project, created_us, id);

-- Open jobs whose callback has a filter; their events after `after_id` are looked at.
CREATE TABLE callback_watch (job_id TEXT PRIMARY KEY, after_id INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX callback_watch_first ON callback_watch (after_id);
INSERT INTO meta (key, value) VALUES ('callback_cursor', 0);

-- The last event of each project that went with its job.
CREATE TABLE pruned (project TEXT PRIMARY KEY, until_id INTEGER NOT NULL) WITHOUT ROWID;

ALTER TABLE delivery ADD COLUMN subscription_id TEXT;
ALTER TABLE delivery ADD COLUMN number INTEGER;              -- counts the deliveries of a subscription
ALTER TABLE delivery ADD COLUMN receiver TEXT NOT NULL DEFAULT '';  -- who shares one receiver's places: a subscription, or an origin
ALTER TABLE delivery ADD COLUMN parked INTEGER NOT NULL DEFAULT 0;  -- 1 while its subscription is paused
ALTER TABLE delivery ADD COLUMN detail TEXT;                 -- JSON: the event, or which events are missing
UPDATE delivery SET receiver = project || ' ' || url;
DROP INDEX delivery_due;
CREATE INDEX delivery_due ON delivery (next_us) WHERE state = 'pending' AND parked = 0;
CREATE INDEX delivery_receiver ON delivery (receiver, next_us) WHERE state = 'pending' AND parked = 0;
CREATE INDEX delivery_subscription ON delivery (subscription_id, number) WHERE subscription_id IS NOT NULL;
