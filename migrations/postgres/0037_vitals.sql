-- The devices that criteria of health look at: those that are watched, and those that have regressed (ADR 16).
-- The file of the same number for SQLite says the same.

DROP INDEX device_updates_watched_of_campaign;
CREATE INDEX device_updates_seen_of_campaign ON device_updates (campaign_id, ended_at)
    WHERE (watch_until IS NOT NULL OR regressed_at IS NOT NULL);
