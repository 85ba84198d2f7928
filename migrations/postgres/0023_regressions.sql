-- Devices that are watched after they have completed an update, and those that have regressed (ADR 16).
-- The file of the same number for SQLite says the same.

ALTER TABLE device_updates ADD COLUMN watch_until BIGINT;     -- completed: its device is watched until then; check_at is the next look
ALTER TABLE device_updates ADD COLUMN watch_silent BIGINT;    -- seconds; null: it may be away
ALTER TABLE device_updates ADD COLUMN watch_restarts BIGINT;  -- left before they are a boot loop
ALTER TABLE device_updates ADD COLUMN regressed_at BIGINT;    -- completed, and has not stayed well; failure_* say how
CREATE INDEX device_updates_watched ON device_updates (device_key) WHERE watch_until IS NOT NULL;

ALTER TABLE campaign_stages ADD COLUMN regressed BIGINT NOT NULL DEFAULT 0 CHECK (regressed >= 0 AND regressed <= completed);
ALTER TABLE campaign_stages ADD COLUMN regressed_at BIGINT;   -- the last one
CREATE INDEX campaign_stages_regressed ON campaign_stages (regressed_at) WHERE regressed_at IS NOT NULL;
