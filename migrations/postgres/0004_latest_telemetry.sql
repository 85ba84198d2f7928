-- More of a device's last word, so that overviews and target filters never look into the history of heartbeats.
-- The file of the same number for SQLite says the same.

ALTER TABLE device_latest ADD COLUMN charging BIGINT;
ALTER TABLE device_latest ADD COLUMN error_count BIGINT NOT NULL DEFAULT 0;  -- in the last heartbeat
ALTER TABLE device_latest ADD COLUMN last_error TEXT;                        -- JSON: code, message, at
ALTER TABLE device_latest ADD COLUMN metrics TEXT;                           -- JSON object of numbers, as last sent
