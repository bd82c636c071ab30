-- Deliveries, who subscribed to them, and the events that they are made of.

-- name: add_delivery
-- Of a job's callback without a filter, in the transaction of its end.
-- params: id, job_id, project, url, event, now_us, receiver
INSERT INTO delivery (id, job_id, project, url, event, state, next_us, created_us, receiver)
VALUES (:id, :job_id, :project, :url, :event, 'pending', :now_us, :now_us, :receiver);

-- name: find_due
-- params: now_us, limit
SELECT id, receiver FROM delivery WHERE state = 'pending' AND parked = 0 AND next_us <= :now_us ORDER BY next_us LIMIT :limit;

-- name: find_receivers
-- Every receiver that has something pending: from each to the next in the index, never over all that one of them has.
-- params: limit
WITH RECURSIVE one (receiver) AS (
  SELECT MIN(receiver) FROM delivery WHERE state = 'pending' AND parked = 0
  UNION ALL
  SELECT (SELECT MIN(receiver) FROM delivery WHERE state = 'pending' AND parked = 0 AND delivery.receiver > one.receiver)
    FROM one WHERE one.receiver IS NOT NULL
)
SELECT receiver FROM one WHERE receiver IS NOT NULL LIMIT :limit;

-- name: find_due_of
-- params: receiver, now_us, limit
SELECT id, next_us FROM delivery
 WHERE state = 'pending' AND parked = 0 AND receiver = :receiver AND next_us <= :now_us ORDER BY next_us LIMIT :limit;

-- name: claim_deliveries
-- params: ids, hidden_until_us
UPDATE delivery SET attempt = attempt + 1, sending = 1, next_us = :hidden_until_us
 WHERE id IN (SELECT value FROM json_each(:ids))
RETURNING id, job_id, project, url, event, state, attempt, next_us, created_us, ended_us, last_status, last_error,
          subscription_id, number, receiver, detail;

-- name: finish_delivery
-- params: id, attempt, state, next_us, status, error, ended_us
UPDATE delivery SET state = :state, sending = 0, next_us = :next_us, last_status = :status, last_error = :error, ended_us = :ended_us
 WHERE id = :id AND attempt = :attempt AND state = 'pending';

-- name: release_deliveries
-- Those that a dead process was sending may be sent again now.
UPDATE delivery SET sending = 0, next_us = created_us WHERE state = 'pending' AND sending = 1;

-- name: next_delivery
SELECT MIN(next_us) FROM delivery WHERE state = 'pending' AND parked = 0;

-- name: list_deliveries
-- params: job_id
SELECT id, job_id, project, url, event, state, attempt, next_us, created_us, ended_us, last_status, last_error,
       subscription_id, number, receiver, detail
  FROM delivery WHERE job_id = :job_id ORDER BY created_us, id;

-- name: page_deliveries
-- params: subscription_id, before, state, limit
SELECT id, job_id, project, url, event, state, attempt, next_us, created_us, ended_us, last_status, last_error,
       subscription_id, number, receiver, detail
  FROM delivery
 WHERE subscription_id = :subscription_id AND subscription_id IS NOT NULL AND number < :before
   AND (:state IS NULL OR state = :state)
 ORDER BY number DESC LIMIT :limit;

-- name: get_delivery
-- params: id
SELECT id, job_id, project, url, event, state, attempt, next_us, created_us, ended_us, last_status, last_error,
       subscription_id, number, receiver, detail
  FROM delivery WHERE id = :id;

-- name: redeliver
-- params: id, now_us
UPDATE delivery SET state = 'pending', attempt = 0, sending = 0, next_us = :now_us, ended_us = NULL,
       parked = EXISTS (SELECT 1 FROM subscription WHERE subscription.id = subscription_id AND subscription.state = 'paused')
 WHERE id = :id;

-- name: add_subscription
-- params: id, project, url, description, filter, secret, cursor, now_us
INSERT INTO subscription (id, project, url, description, filter, secret, state, revision, cursor, created_us, updated_us)
VALUES (:id, :project, :url, :description, :filter, :secret, 'active', 1, :cursor, :now_us, :now_us);

-- name: count_subscriptions
-- params: project
SELECT COUNT(*) FROM subscription WHERE project = :project;

-- name: get_subscription
-- params: id
SELECT id, project, url, description, filter, secret, old_secret, old_secret_until_us, state, reason, revision, cursor, missed_until,
       made, given_up, created_us, updated_us
  FROM subscription WHERE id = :id;

-- name: list_subscriptions
-- params: project
SELECT id, project, url, description, filter, secret, old_secret, old_secret_until_us, state, reason, revision, cursor, missed_until,
       made, given_up, created_us, updated_us
  FROM subscription WHERE :project IS NULL OR project = :project ORDER BY project, created_us, id;

-- name: update_subscription
-- params: id, url, description, filter, secret, old_secret, old_secret_until_us, state, reason, cursor, now_us
UPDATE subscription
   SET url = :url, description = :description, filter = :filter, secret = :secret, old_secret = :old_secret,
       old_secret_until_us = :old_secret_until_us, given_up = CASE WHEN state = 'paused' THEN 0 ELSE given_up END, state = :state,
       reason = :reason, revision = revision + 1, cursor = :cursor, updated_us = :now_us
 WHERE id = :id;

-- name: park_deliveries
-- params: id, parked, url
UPDATE delivery SET parked = :parked, url = :url
 WHERE subscription_id = :id AND subscription_id IS NOT NULL AND state = 'pending';

-- name: delete_subscription
-- params: id
DELETE FROM subscription WHERE id = :id;

-- name: delete_subscription_deliveries
-- params: id
DELETE FROM delivery WHERE subscription_id = :id AND subscription_id IS NOT NULL;

-- name: count_pending
-- params: receiver
SELECT COUNT(*) FROM delivery WHERE state = 'pending' AND parked = 0 AND receiver = :receiver;

-- name: note_success
-- params: id
UPDATE subscription SET given_up = 0 WHERE id = :id AND given_up > 0;

-- name: note_given_up
-- params: id
UPDATE subscription SET given_up = given_up + 1 WHERE id = :id RETURNING given_up, state;

-- name: stop_subscription
-- By the courier: its receiver is gone, or has not taken anything for long.
-- params: id, reason, now_us
UPDATE subscription SET state = 'paused', reason = :reason, updated_us = :now_us WHERE id = :id AND state = 'active';

-- name: list_news
-- The events behind a cursor that a subscription may be about, with what filters look at.
-- params: after_id, until_id, projects, types, limit
SELECT event.id, event.job_id, job.root_id, job.project, event.seq, event.type, event.state, event.at_us, event.data,
       job.kind, job.labels, root.labels
  FROM event CROSS JOIN job ON job.id = event.job_id LEFT JOIN job AS root ON root.id = job.root_id AND job.parent_id IS NOT NULL
 WHERE event.id > :after_id AND event.id <= :until_id
   AND event.type IN (SELECT value FROM json_each(:types)) AND job.project IN (SELECT value FROM json_each(:projects))
 ORDER BY event.id LIMIT :limit;

-- name: list_watched_news
-- The events behind the cursor of those jobs whose callbacks have a filter.
-- params: after_id, until_id, limit
SELECT event.id, event.job_id, job.root_id, job.project, event.seq, event.type, event.state, event.at_us, event.data,
       job.callback_url
  FROM event CROSS JOIN callback_watch ON callback_watch.job_id = event.job_id CROSS JOIN job ON job.id = event.job_id
 WHERE event.id > :after_id AND event.id <= :until_id
 ORDER BY event.id LIMIT :limit;

-- name: first_watched
SELECT MIN(after_id) FROM callback_watch;

-- name: add_watch
-- params: job_id, after_id
INSERT INTO callback_watch (job_id, after_id) VALUES (:job_id, :after_id);

-- name: delete_watches
-- params: ids
DELETE FROM callback_watch WHERE job_id IN (SELECT value FROM json_each(:ids));

-- name: callback_cursor
SELECT value FROM meta WHERE key = 'callback_cursor';

-- name: move_callback_cursor
-- params: before_id, until_id
UPDATE meta SET value = :until_id WHERE key = 'callback_cursor' AND value <= :before_id;

-- name: move_cursor
-- params: id, revision, before_id, until_id, missed_until, made
UPDATE subscription SET cursor = :until_id, missed_until = :missed_until, made = :made
 WHERE id = :id AND state = 'active' AND revision = :revision AND cursor <= :before_id;

-- name: publish
-- params: id, job_id, project, url, event, now_us, receiver, subscription_id, number, detail
INSERT INTO delivery (id, job_id, project, url, event, state, next_us, created_us, receiver, subscription_id, number, detail)
VALUES (:id, :job_id, :project, :url, :event, 'pending', :now_us, :now_us, :receiver, :subscription_id, :number, :detail);

-- name: has_pending
-- params: job_id, event, receiver
SELECT 1 FROM delivery
 WHERE job_id = :job_id AND event = :event AND receiver = :receiver AND state = 'pending' AND sending = 0 LIMIT 1;

-- name: count_of_job
-- params: job_id
SELECT COUNT(*) FROM delivery WHERE job_id = :job_id AND subscription_id IS NULL;

-- name: trim_log
-- params: id, until
DELETE FROM delivery
 WHERE subscription_id = :id AND subscription_id IS NOT NULL AND number <= :until AND state <> 'pending';

-- name: pruned_until
-- The last event of a project, or of any, that went with its job.
-- params: project
SELECT COALESCE(MAX(until_id), 0) FROM pruned WHERE :project IS NULL OR project = :project;

-- name: note_pruned
-- params: ids
INSERT INTO pruned (project, until_id)
SELECT job.project, MAX(event.id)
  FROM json_each(:ids) AS given CROSS JOIN job ON job.id = given.value CROSS JOIN event ON event.job_id = job.id
 WHERE true GROUP BY job.project
ON CONFLICT (project) DO UPDATE SET until_id = MAX(until_id, excluded.until_id);
