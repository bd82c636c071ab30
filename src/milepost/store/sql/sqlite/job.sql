-- Jobs and their events.  Every UPDATE repeats the state it may leave, so that a final row cannot change.

-- name: add_job
-- params: id, kind, state, project, queue, priority, due, run_at_us, attempts_max, timeout_s, deadline_us, parent_id, root_id, position, retry_of, callback_url, idempotency_key, body_hash, now_us, labels, origin, input, expires_us
INSERT INTO job (id, kind, state, project, queue, priority, due, run_at_us, attempts_max, timeout_s, deadline_us, parent_id, root_id,
                 position, retry_of, callback_url, idempotency_key, body_hash, created_us, updated_us, version, labels, origin, input,
                 expires_us)
VALUES (:id, :kind, :state, :project, :queue, :priority, :due, :run_at_us, :attempts_max, :timeout_s, :deadline_us, :parent_id, :root_id,
        :position, :retry_of, :callback_url, :idempotency_key, :body_hash, :now_us, :now_us, 1, :labels, :origin, :input, :expires_us);

-- name: add_plain_job
-- The usual root: every parameter that is bound costs half a microsecond.
-- params: id, kind, state, project, queue, priority, due, run_at_us, attempts_max, now_us, labels, origin, input
INSERT INTO job (id, kind, state, project, queue, priority, due, run_at_us, attempts_max, root_id, created_us, updated_us, version,
                 labels, origin, input)
VALUES (:id, :kind, :state, :project, :queue, :priority, :due, :run_at_us, :attempts_max, :id, :now_us, :now_us, 1,
        :labels, :origin, :input);

-- name: begin_plain_job
-- The usual root that is claimed as it is added: the parameters of add_plain_job, with the worker in place of the state.
-- params: id, kind, worker, project, queue, priority, due, run_at_us, attempts_max, now_us, labels, origin, input
INSERT INTO job (id, kind, state, project, queue, priority, due, run_at_us, attempt, attempts_max, root_id, created_us, started_us,
                 updated_us, version, fence, lease_by, labels, origin, input)
VALUES (:id, :kind, 'running', :project, :queue, :priority, :due, :run_at_us, 1, :attempts_max, :id, :now_us, :now_us,
        :now_us, 2, 1, :worker, :labels, :origin, :input);

-- name: add_alike
-- Plain jobs that differ in their ids and inputs only.
-- params: inputs, kind, state, project, queue, priority, due, run_at_us, attempts_max, now_us, labels, origin
INSERT INTO job (id, kind, state, project, queue, priority, due, run_at_us, attempts_max, root_id, created_us, updated_us, version,
                 labels, origin, input)
SELECT given.key, :kind, :state, :project, :queue, :priority, :due, :run_at_us, :attempts_max, given.key, :now_us, :now_us, 1,
       :labels, :origin, given.value
  FROM json_each(:inputs) AS given;

-- name: begin_alike
-- As add_alike, claimed as they are added.
-- params: inputs, kind, worker, project, queue, priority, due, run_at_us, attempts_max, now_us, labels, origin
INSERT INTO job (id, kind, state, project, queue, priority, due, run_at_us, attempt, attempts_max, root_id, created_us, started_us,
                 updated_us, version, fence, lease_by, labels, origin, input)
SELECT given.key, :kind, 'running', :project, :queue, :priority, :due, :run_at_us, 1, :attempts_max, given.key, :now_us, :now_us,
       :now_us, 2, 1, :worker, :labels, :origin, given.value
  FROM json_each(:inputs) AS given;

-- name: first_waiting
-- Jobs of a lower number in priority than this have no due job before them in their queue.  Below all where nothing may begin:
-- the queue is paused, or the worker's lease is over.
-- params: queue, worker, now_us
SELECT CASE WHEN NOT EXISTS (SELECT 1 FROM worker WHERE worker.id = :worker AND lease_until_us > :now_us)
              OR EXISTS (SELECT 1 FROM queue WHERE queue.name = :queue AND paused = 1)
            THEN -1
            ELSE COALESCE((SELECT priority FROM job WHERE queue = :queue AND state = 'ready' AND due = 1
                            ORDER BY priority LIMIT 1), 1 << 30)
       END;

-- name: add_label
-- params: project, key, value, job_id
INSERT INTO job_label (project, key, value, job_id) VALUES (:project, :key, :value, :job_id);

-- name: add_event
-- params: id, job_id, seq, type, state, at_us, data
INSERT INTO event (id, job_id, seq, type, state, at_us, data) VALUES (:id, :job_id, :seq, :type, :state, :at_us, :data);

-- name: add_events
-- What just happened to each of these jobs, as its row has it: one statement for any number of them.
-- params: first_id, ids, type
INSERT INTO event (id, job_id, seq, type, state, at_us, data)
SELECT :first_id + given.key, job.id, job.version, COALESCE(:type, job.state), job.state, job.updated_us,
       CASE WHEN job.ended_us IS NOT NULL THEN job.error END
  FROM json_each(:ids) AS given CROSS JOIN job ON job.id = given.value;

-- name: add_begun_events
-- Two for each of these jobs that were added and claimed at once, at the same moment.
-- params: first_id, ids, at_us
INSERT INTO event (id, job_id, seq, type, state, at_us)
SELECT :first_id + 2 * given.key + step.column1, given.value, 1 + step.column1,
       CASE step.column1 WHEN 0 THEN 'submitted' ELSE 'started' END, CASE step.column1 WHEN 0 THEN 'ready' ELSE 'running' END,
       :at_us
  FROM json_each(:ids) AS given CROSS JOIN (VALUES (0), (1)) AS step;

-- name: find_key
-- params: project, key
SELECT id, body_hash FROM job WHERE project = :project AND idempotency_key = :key AND idempotency_key IS NOT NULL;

-- name: get_job
-- params: id
SELECT id, kind, state, project, queue, priority, run_at_us, attempt, attempts_max, crashes, timeout_s, deadline_us, parent_id, root_id,
       position, sub_total, retry_of, cancel_reason, callback_url, created_us, started_us, ended_us, updated_us, expires_us, version,
       fence, lease_by, labels, origin, progress, error, input, result
  FROM job WHERE id = :id;

-- name: get_jobs
-- params: ids
SELECT id, kind, state, project, queue, priority, run_at_us, attempt, attempts_max, crashes, timeout_s, deadline_us, parent_id, root_id,
       position, sub_total, retry_of, cancel_reason, callback_url, created_us, started_us, ended_us, updated_us, expires_us, version,
       fence, lease_by, labels, origin, progress, error, input, result
  FROM job WHERE id IN (SELECT value FROM json_each(:ids));

-- name: get_tombstone
-- params: id
SELECT id, project, kind, state, ended_us, expired_us FROM tombstone WHERE id = :id;

-- name: find_claimable
-- The first due jobs of one queue, for one live worker.  SQLite has one writer: there is nothing to skip.
-- Jobs that one more crash would fail run one at a time, so that the one that kills its worker takes no other with it.
-- params: queue, worker, now_us, limit, last_chance
-- returns: id, version
SELECT id, version
  FROM job
 WHERE queue = :queue AND state = 'ready' AND due = 1 AND (deadline_us IS NULL OR deadline_us > :now_us)
   AND (crashes < :last_chance
        OR id = (SELECT first.id FROM job AS first
                  WHERE first.queue = :queue AND first.crashes > 0 AND first.ended_us IS NULL
                    AND first.crashes >= :last_chance AND first.state = 'ready' AND first.due = 1
                    AND NOT EXISTS (SELECT 1 FROM job AS other
                                     WHERE other.crashes > 0 AND other.ended_us IS NULL
                                       AND other.crashes >= :last_chance AND other.state = 'running')
                  ORDER BY first.priority, first.run_at_us, first.id LIMIT 1))
   AND EXISTS (SELECT 1 FROM worker WHERE worker.id = :worker AND lease_until_us > :now_us)
 ORDER BY priority, run_at_us, id LIMIT :limit;

-- name: claim_jobs
-- In the transaction of find_claimable.  No RETURNING: its temporary table costs as much as the update.
-- params: ids, worker, now_us
UPDATE job
   SET state = 'running', lease_by = :worker, attempt = attempt + 1, fence = fence + 1, version = version + 1,
       started_us = COALESCE(started_us, :now_us), updated_us = :now_us
 WHERE id IN (SELECT value FROM json_each(:ids)) AND state = 'ready';

-- name: renew_lease
-- params: worker, lease_until_us
INSERT INTO worker (id, lease_until_us) VALUES (:worker, :lease_until_us)
ON CONFLICT (id) DO UPDATE SET lease_until_us = :lease_until_us;

-- name: list_owned
-- params: worker
SELECT id, cancel_reason FROM job WHERE lease_by = :worker AND state = 'running';

-- name: end_worker
-- params: worker
DELETE FROM worker WHERE id = :worker;

-- name: end_other_workers
-- params: worker
DELETE FROM worker WHERE id <> :worker;

-- name: list_dead_workers
-- params: now_us
SELECT DISTINCT lease_by FROM job
 WHERE state = 'running'
   AND NOT EXISTS (SELECT 1 FROM worker WHERE worker.id = job.lease_by AND lease_until_us > :now_us);

-- name: report_progress
-- params: id, fence, progress, now_us
UPDATE job SET progress = :progress, version = version + 1, updated_us = :now_us
 WHERE id = :id AND state = 'running' AND fence = :fence
RETURNING version;

-- name: find_ending
-- params: ids
SELECT job.id, job.fence, job.version, job.parent_id, job.callback_url, job.project, job.root_id
  FROM json_each(:ids) AS given CROSS JOIN job ON job.id = given.value
 WHERE job.state = 'running';

-- name: finish_job
-- To a final state, in the transaction of find_ending.
-- params: id, fence, state, result, error, now_us, expires_us
UPDATE job SET state = :state, result = :result, error = :error, ended_us = :now_us, updated_us = :now_us, expires_us = :expires_us,
               lease_by = NULL, version = version + 1
 WHERE id = :id AND state = 'running' AND fence = :fence;

-- name: finish_alike
-- As finish_job, jobs that differ in their ids and results only.
-- params: results, fence, state, error, now_us, expires_us
UPDATE job SET state = :state, result = given.value, error = :error, ended_us = :now_us, updated_us = :now_us,
               expires_us = :expires_us, lease_by = NULL, version = version + 1
  FROM json_each(:results) AS given
 WHERE job.id = given.key AND job.state = 'running' AND job.fence = :fence;

-- name: finish_same
-- As finish_job, jobs that differ in their ids only.
-- params: ids, fence, state, result, error, now_us, expires_us
UPDATE job SET state = :state, result = :result, error = :error, ended_us = :now_us, updated_us = :now_us, expires_us = :expires_us,
               lease_by = NULL, version = version + 1
 WHERE id IN (SELECT value FROM json_each(:ids)) AND state = 'running' AND fence = :fence;

-- name: requeue_job
-- Running to ready: retried, snoozed, returned or rescued.  Who snoozes is alive: crashes before that count no more, nor do the
-- attempts that they were.
-- params: id, fence, run_at_us, due, counts, crashed, snoozed, error, now_us
UPDATE job SET state = 'ready', run_at_us = :run_at_us, due = :due,
               attempt = attempt - 1 + :counts - crashes * :snoozed, crashes = (crashes + :crashed) * (1 - :snoozed),
               error = COALESCE(:error, error), lease_by = NULL, version = version + 1, updated_us = :now_us
 WHERE id = :id AND state = 'running' AND fence = :fence
RETURNING version;

-- name: suspend_job
-- Running to waiting, with as many more sub-jobs.
-- params: id, fence, added, now_us
UPDATE job SET state = 'waiting', attempt = attempt - 1, sub_total = sub_total + :added, lease_by = NULL,
               version = version + 1, updated_us = :now_us
 WHERE id = :id AND state = 'running' AND fence = :fence
RETURNING version;

-- name: get_running
-- params: id, fence
SELECT project, priority, root_id, sub_total, cancel_reason, run_at_us, parent_id, expires_us, crashes FROM job
 WHERE id = :id AND state = 'running' AND fence = :fence;

-- name: settle_parent
-- A waiting parent whose last open sub-job ended: ready again, or cancelled when that was asked for.
-- params: id, now_us
UPDATE job SET state = CASE WHEN cancel_reason IS NULL THEN 'ready' ELSE 'cancelled' END,
               due = 1,
               ended_us = CASE WHEN cancel_reason IS NULL THEN NULL ELSE :now_us END,
               error = CASE WHEN cancel_reason IS NULL THEN error ELSE json_object('code', 'cancelled', 'message', cancel_reason) END,
               version = version + 1, updated_us = :now_us
 WHERE id = :id AND state = 'waiting'
   AND NOT EXISTS (SELECT 1 FROM job AS sub
                    WHERE sub.parent_id = :id AND sub.parent_id IS NOT NULL AND sub.ended_us IS NULL)
RETURNING version, state, parent_id, callback_url, project, queue, error;

-- name: end_idle_job
-- A job that nobody runs becomes final.
-- params: id, state, error, now_us, expires_us
UPDATE job SET state = :state, error = :error, ended_us = :now_us, updated_us = :now_us, expires_us = :expires_us, version = version + 1
 WHERE id = :id AND state IN ('held','ready','waiting')
RETURNING version, parent_id, callback_url, project, root_id;

-- name: ask_cancel
-- params: id, reason, now_us, expires_us
UPDATE job SET cancel_reason = :reason, updated_us = :now_us, version = version + 1, expires_us = :expires_us
 WHERE id = :id AND state IN ('running','waiting') AND cancel_reason IS NULL
RETURNING version, state;

-- name: list_open_subs
-- params: parent_id
SELECT id, state FROM job
 WHERE parent_id = :parent_id AND parent_id IS NOT NULL AND ended_us IS NULL;

-- name: release_job
-- params: id, due, now_us
UPDATE job SET state = 'ready', due = :due, expires_us = NULL, version = version + 1, updated_us = :now_us WHERE id = :id AND state = 'held'
RETURNING version;

-- name: promote_due
-- params: now_us, limit
UPDATE job SET due = 1
 WHERE id IN (SELECT id FROM job WHERE state = 'ready' AND due = 0 AND run_at_us <= :now_us ORDER BY run_at_us LIMIT :limit)
RETURNING queue;

-- name: next_schedule
SELECT MIN(run_at_us) FROM job WHERE state = 'ready' AND due = 0;

-- name: next_deadline
SELECT MIN(deadline_us) FROM job WHERE deadline_us IS NOT NULL AND ended_us IS NULL AND state <> 'running';

-- name: list_overdue
-- params: now_us, limit
SELECT id, parent_id FROM job
 WHERE deadline_us IS NOT NULL AND deadline_us <= :now_us AND ended_us IS NULL AND state <> 'running'
 ORDER BY deadline_us LIMIT :limit;

-- name: count_subs
-- params: parent_ids
SELECT parent_id, state, COUNT(*) FROM job
 WHERE parent_id IN (SELECT value FROM json_each(:parent_ids)) AND parent_id IS NOT NULL
 GROUP BY parent_id, state;

-- name: list_subs
-- params: parent_id
SELECT id, kind, state, project, queue, priority, run_at_us, attempt, attempts_max, crashes, timeout_s, deadline_us, parent_id, root_id,
       position, sub_total, retry_of, cancel_reason, callback_url, created_us, started_us, ended_us, updated_us, expires_us, version,
       fence, lease_by, labels, origin, progress, error, input, result
  FROM job WHERE parent_id = :parent_id AND parent_id IS NOT NULL ORDER BY position;

-- name: list_job_events
-- params: job_id, after_id, limit
SELECT event.id, event.job_id, job.root_id, job.project, event.seq, event.type, event.state, event.at_us, event.data
  FROM event JOIN job ON job.id = event.job_id
 WHERE event.job_id = :job_id AND event.id > :after_id ORDER BY event.seq LIMIT :limit;

-- name: list_tree_events
-- params: root_id, after_id, limit
SELECT event.id, event.job_id, job.root_id, job.project, event.seq, event.type, event.state, event.at_us, event.data
  FROM job JOIN event ON event.job_id = job.id
 WHERE (job.id = :root_id OR (job.root_id = :root_id AND job.parent_id IS NOT NULL)) AND event.id > :after_id
 ORDER BY event.id LIMIT :limit;

-- name: list_project_events
-- params: project, after_id, limit
SELECT event.id, event.job_id, job.root_id, job.project, event.seq, event.type, event.state, event.at_us, event.data
  FROM event JOIN job ON job.id = event.job_id
 WHERE event.id > :after_id AND (:project IS NULL OR job.project = :project)
 ORDER BY event.id LIMIT :limit;

-- name: list_expired
-- A root that failed by its deadline may end before a sub-job that a worker still runs: it is kept until that one ended too.
-- params: now_us, limit
SELECT id FROM job
 WHERE expires_us IS NOT NULL AND expires_us <= :now_us AND parent_id IS NULL AND (ended_us IS NOT NULL OR state = 'held')
   AND NOT EXISTS (SELECT 1 FROM job AS sub
                    WHERE sub.root_id = job.id AND sub.parent_id IS NOT NULL AND sub.ended_us IS NULL)
 ORDER BY expires_us LIMIT :limit;

-- name: list_tree
-- The sub-jobs of a root at any depth.
-- params: root_id, limit
SELECT id FROM job WHERE root_id = :root_id AND parent_id IS NOT NULL LIMIT :limit;

-- name: bury_jobs
-- params: ids, now_us
INSERT INTO tombstone (id, project, kind, state, ended_us, expired_us)
SELECT id, project, kind, state, COALESCE(ended_us, :now_us), :now_us FROM job WHERE id IN (SELECT value FROM json_each(:ids));

-- name: delete_jobs
-- params: ids
DELETE FROM job WHERE id IN (SELECT value FROM json_each(:ids));

-- name: delete_events
-- params: ids
DELETE FROM event WHERE job_id IN (SELECT value FROM json_each(:ids));

-- name: delete_labels
-- params: ids
DELETE FROM job_label WHERE job_id IN (SELECT value FROM json_each(:ids));

-- name: delete_deliveries
-- Those of the jobs' own callbacks: subscribers are told of jobs that are gone, too.
-- params: ids
DELETE FROM delivery WHERE job_id IN (SELECT value FROM json_each(:ids)) AND subscription_id IS NULL;

-- name: delete_tombstones
-- params: before_us, limit
DELETE FROM tombstone WHERE id IN (SELECT id FROM tombstone WHERE expired_us <= :before_us LIMIT :limit);

-- name: delete_old_deliveries
-- params: before_us, limit
DELETE FROM delivery WHERE id IN (SELECT id FROM delivery WHERE ended_us IS NOT NULL AND ended_us <= :before_us LIMIT :limit);

-- name: delete_old_tokens
-- params: now_us
DELETE FROM token WHERE expires_us <= :now_us;

-- name: delete_old_signatures
-- params: now_us, limit
DELETE FROM signature WHERE digest IN (SELECT digest FROM signature WHERE expires_us <= :now_us LIMIT :limit);

-- name: last_event_id
SELECT MAX((SELECT COALESCE(MAX(id), 0) FROM event), (SELECT value FROM meta WHERE key = 'last_event_id'));

-- name: keep_event_id
-- params: id
UPDATE meta SET value = :id WHERE key = 'last_event_id' AND value < :id;

-- name: prove_write
-- params: now_us
INSERT INTO meta (key, value) VALUES ('ping', :now_us) ON CONFLICT (key) DO UPDATE SET value = :now_us;

-- name: list_queues
SELECT name, job_limit, paused FROM queue ORDER BY name;

-- name: set_queue
-- params: name, limit, paused
INSERT INTO queue (name, job_limit, paused) VALUES (:name, :limit, :paused)
ON CONFLICT (name) DO UPDATE SET job_limit = :limit, paused = :paused;

-- name: queue_depths
SELECT queue, 'due', COUNT(*), MIN(run_at_us) FROM job WHERE state = 'ready' AND due = 1 GROUP BY queue
UNION ALL
SELECT queue, 'scheduled', COUNT(*), NULL FROM job WHERE state = 'ready' AND due = 0 GROUP BY queue
UNION ALL
SELECT queue, 'running', COUNT(*), NULL FROM job WHERE state = 'running' AND lease_by IS NOT NULL GROUP BY queue
UNION ALL
SELECT queue, state, COUNT(*), NULL FROM job WHERE state = 'held' OR state = 'waiting' GROUP BY queue, state;

-- name: count_due
-- The due jobs of one project in a queue and in those whose names begin with it and a dot: "/" is the character behind the dot.
-- params: project, queue
-- returns: queue, count
SELECT queue, COUNT(*) FROM job
 WHERE state = 'ready' AND due = 1 AND project = :project AND queue = :queue GROUP BY queue
UNION ALL
SELECT queue, COUNT(*) FROM job
 WHERE state = 'ready' AND due = 1 AND project = :project AND queue > :queue || '.' AND queue < :queue || '/' GROUP BY queue;
