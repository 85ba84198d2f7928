-- What a campaign's criteria of health have found, and the devices that they look at (ADR 16).
-- The file of the same number for SQLite says the same.

ALTER TABLE update_campaigns ADD COLUMN readings TEXT;  -- JSON; apart from the state, which changes with the revision
CREATE INDEX device_updates_watched_of_campaign ON device_updates (campaign_id, ended_at) WHERE watch_until IS NOT NULL;
