-- The devices of a campaign that have not answered what they were told: how many more may be told something now.
-- The file of the same number for SQLite says the same.

CREATE INDEX device_updates_unanswered ON device_updates (campaign_id, action) WHERE nudge_at IS NOT NULL;
