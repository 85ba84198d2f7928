-- Devices that hold an image in their idle slot until they are told to activate it.
-- The file of the same number for SQLite says the same.

ALTER TABLE device_updates DROP CONSTRAINT device_updates_state_check;
ALTER TABLE device_updates ADD CONSTRAINT device_updates_state_check
    CHECK (state IN ('pending', 'in_flight', 'staged', 'completed', 'failed', 'cancelled'));

-- A device has one idle slot.
CREATE UNIQUE INDEX device_updates_held ON device_updates (device_key) WHERE state = 'staged';
CREATE INDEX device_updates_held_of_campaign ON device_updates (campaign_id, action, stage, since, number) WHERE state = 'staged';
ALTER TABLE device_updates ADD COLUMN hold BIGINT NOT NULL DEFAULT 0;  -- in flight: offered to go no further than staged
ALTER TABLE campaign_stages ADD COLUMN staged BIGINT NOT NULL DEFAULT 0 CHECK (staged >= 0);
