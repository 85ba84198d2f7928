-- Since when a device has been away, until that is told; null while it is connected and after it was told. No column that
-- heartbeats write is in the index, so that they leave it alone.
-- The file of the same number for SQLite says the same.

ALTER TABLE device_latest ADD COLUMN offline_since BIGINT;
CREATE INDEX device_latest_away ON device_latest (offline_since) WHERE offline_since IS NOT NULL;
