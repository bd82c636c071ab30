-- Resources, and who may use them: everything that is neither a job nor a delivery.

-- name: get_resource
-- params: type, id
SELECT type, id, project, doc, created_us, updated_us, version FROM resource WHERE type = :type AND id = :id;

-- name: put_resource
-- params: type, id, project, doc, created_us, updated_us
INSERT INTO resource (type, id, project, doc, created_us, updated_us, version)
VALUES (:type, :id, :project, :doc, :created_us, :updated_us, 1)
ON CONFLICT (type, id) DO UPDATE SET project = :project, doc = :doc, updated_us = :updated_us, version = version + 1
RETURNING created_us, version;

-- name: list_resources
-- params: type, project
SELECT type, id, project, doc, created_us, updated_us, version FROM resource
 WHERE type = :type AND (:project IS NULL OR project = :project) ORDER BY created_us, id;

-- name: page_resources
-- SQLite compares text by its bytes in UTF-8, and every id that begins with a prefix lies between it and the prefix with U+10FFFF behind.
-- params: type, prefix, last, after, limit
SELECT type, id, project, doc, created_us, updated_us, version FROM resource
 WHERE type = :type AND id >= :prefix AND id < :last AND id > :after ORDER BY id LIMIT :limit;

-- name: page_resources_first
-- params: type, prefix, last, limit
SELECT type, id, project, doc, created_us, updated_us, version FROM resource
 WHERE type = :type AND id >= :prefix AND id < :last ORDER BY id LIMIT :limit;

-- name: delete_resource
-- params: type, id
DELETE FROM resource WHERE type = :type AND id = :id;

-- name: holds_claim
-- params: id, fence
SELECT 1 FROM job WHERE id = :id AND state = 'running' AND fence = :fence;

-- name: add_project
-- params: id, name, domain, callback_secret, created_us, enabled
INSERT INTO project (id, name, domain, callback_secret, created_us, enabled)
VALUES (:id, :name, :domain, :callback_secret, :created_us, :enabled);

-- name: get_project
-- params: id_or_name, domain
SELECT id, name, domain, callback_secret, created_us, enabled FROM project
 WHERE id = :id_or_name OR (name = :id_or_name AND (:domain IS NULL OR domain = :domain))
 ORDER BY id = :id_or_name DESC LIMIT 1;

-- name: list_projects
SELECT id, name, domain, callback_secret, created_us, enabled FROM project ORDER BY name, id;

-- name: update_project
-- params: id, name, domain, callback_secret, enabled
UPDATE project SET name = :name, domain = :domain, callback_secret = :callback_secret, enabled = :enabled WHERE id = :id;

-- name: add_user
-- params: id, name, domain, password_hash, created_us, enabled
INSERT INTO user (id, name, domain, password_hash, created_us, enabled)
VALUES (:id, :name, :domain, :password_hash, :created_us, :enabled);

-- name: get_user
-- params: id_or_name, domain
SELECT id, name, domain, password_hash, created_us, enabled FROM user
 WHERE id = :id_or_name OR (name = :id_or_name AND (:domain IS NULL OR domain = :domain))
 ORDER BY id = :id_or_name DESC LIMIT 1;

-- name: list_users
SELECT id, name, domain, password_hash, created_us, enabled FROM user ORDER BY name, id;

-- name: update_user
-- params: id, name, domain, password_hash, enabled
UPDATE user SET name = :name, domain = :domain, password_hash = :password_hash, enabled = :enabled WHERE id = :id;

-- name: add_grant
-- params: user_id, project, role
INSERT INTO role (user_id, project, role) VALUES (:user_id, :project, :role) ON CONFLICT DO NOTHING;

-- name: delete_grant
-- params: user_id, project, role
DELETE FROM role WHERE user_id = :user_id AND project = :project AND role = :role;

-- name: list_grants
-- params: user_id
SELECT project, role FROM role WHERE user_id = :user_id ORDER BY project, role;

-- name: add_token
-- params: digest, user_id, project, roles, methods, audit_id, issued_us, expires_us, revoked, name
INSERT INTO token (digest, user_id, project, roles, methods, audit_id, issued_us, expires_us, revoked, name)
VALUES (:digest, :user_id, :project, :roles, :methods, :audit_id, :issued_us, :expires_us, :revoked, :name);

-- name: get_token
-- params: digest
SELECT digest, user_id, project, roles, methods, audit_id, issued_us, expires_us, revoked, name FROM token WHERE digest = :digest;

-- name: revoke_token
-- params: digest
UPDATE token SET revoked = 1 WHERE digest = :digest AND revoked = 0;

-- name: list_tokens
-- params: user_id
SELECT digest, user_id, project, roles, methods, audit_id, issued_us, expires_us, revoked, name FROM token
 WHERE user_id = :user_id ORDER BY issued_us, digest;

-- name: add_access_key
-- params: id, secret, user_id, project, created_us, enabled
INSERT INTO access_key (id, secret, user_id, project, created_us, enabled)
VALUES (:id, :secret, :user_id, :project, :created_us, :enabled);

-- name: get_access_key
-- params: id
SELECT id, secret, user_id, project, created_us, enabled FROM access_key WHERE id = :id;

-- name: list_access_keys
-- params: user_id
SELECT id, secret, user_id, project, created_us, enabled FROM access_key
 WHERE :user_id IS NULL OR user_id = :user_id ORDER BY created_us, id;

-- name: delete_access_key
-- params: id
DELETE FROM access_key WHERE id = :id;

-- name: use_signature
-- params: digest, expires_us
INSERT INTO signature (digest, expires_us) VALUES (:digest, :expires_us) ON CONFLICT DO NOTHING;
