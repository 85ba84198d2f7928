-- A campaign's approval, and the day on which it left the lists.
-- The file of the same number for SQLite says the same.

ALTER TABLE update_campaigns ADD COLUMN approval TEXT NOT NULL DEFAULT '{"status":"not_required"}';  -- JSON
ALTER TABLE update_campaigns ADD COLUMN deleted_at BIGINT;
