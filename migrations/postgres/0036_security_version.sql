-- The security version of an image beside its metadata, so that it can be compared with the floors of devices.
-- The file of the same number for SQLite says the same.

ALTER TABLE firmware ADD COLUMN security_version BIGINT NOT NULL DEFAULT 0;
UPDATE firmware SET security_version = COALESCE(CAST(CAST(metadata AS JSONB) ->> 'security_version' AS BIGINT), 0);
