-- How long the parts of an attempt, and an update as a whole, may take.
-- The file of the same number for SQLite says the same.

ALTER TABLE device_updates ADD COLUMN download_seconds BIGINT;       -- null: as long as the attempt
ALTER TABLE device_updates ADD COLUMN install_seconds BIGINT;        -- null: as long as the attempt
ALTER TABLE device_updates ADD COLUMN give_up_after_seconds BIGINT;  -- null: it waits for as long as it takes
ALTER TABLE device_updates ADD COLUMN part_until BIGINT;             -- in flight: the part that it is in ends then

-- Updates that have an end and whose time has not begun: it does when their stage opens.
CREATE INDEX device_updates_timeless ON device_updates (campaign_id, state, stage)
    WHERE give_up_after_seconds IS NOT NULL AND give_up_at IS NULL;
