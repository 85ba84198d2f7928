-- The security version of an image beside its metadata, so that it can be compared with the floors of devices.
-- The file of the same number for PostgreSQL says the same.

ALTER TABLE firmware ADD COLUMN security_version INTEGER NOT NULL DEFAULT 0;
UPDATE firmware SET security_version = COALESCE(json_extract(metadata, '$.security_version'), 0);
