-- Devices that hold an image in their idle slot until they are told to activate it.
-- The file of the same number for PostgreSQL says the same.

-- The rule about states is one of the column, and a column's rule is changed with the column.
DROP INDEX device_updates_live;
DROP INDEX device_updates_due;
DROP INDEX device_updates_live_of_campaign;
ALTER TABLE device_updates RENAME COLUMN state TO state_before;
ALTER TABLE device_updates ADD COLUMN state TEXT NOT NULL DEFAULT 'pending'
    CHECK (state IN ('pending', 'in_flight', 'staged', 'completed', 'failed', 'cancelled'));
UPDATE device_updates SET state = state_before;
ALTER TABLE device_updates DROP COLUMN state_before;
-- At most one live update a device, whatever the code above does.
CREATE UNIQUE INDEX device_updates_live ON device_updates (device_key) WHERE state = 'in_flight';
CREATE INDEX device_updates_due ON device_updates (campaign_id, action, stage, due_at) WHERE state = 'pending';
CREATE INDEX device_updates_live_of_campaign ON device_updates (campaign_id, action, number) WHERE state = 'in_flight';

-- A device has one idle slot.
CREATE UNIQUE INDEX device_updates_held ON device_updates (device_key) WHERE state = 'staged';
CREATE INDEX device_updates_held_of_campaign ON device_updates (campaign_id, action, stage, since) WHERE state = 'staged';
ALTER TABLE device_updates ADD COLUMN hold INTEGER NOT NULL DEFAULT 0;  -- in flight: offered to go no further than staged
ALTER TABLE campaign_stages ADD COLUMN staged INTEGER NOT NULL DEFAULT 0 CHECK (staged >= 0);
