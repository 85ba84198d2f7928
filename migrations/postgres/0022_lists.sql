-- What lists are filtered by, in the order in which they are shown. Tags are in no index, and no column that heartbeats
-- write is, so that they leave the indexes alone: a list by those looks at one device after the other.
-- The file of the same number for SQLite says the same.

DROP INDEX devices_by_model;
CREATE INDEX devices_by_model ON devices (device_model, device_id);
CREATE INDEX devices_by_type ON devices (device_type, device_id) WHERE device_type IS NOT NULL;
CREATE INDEX devices_by_manufacturer ON devices (manufacturer, device_id) WHERE manufacturer IS NOT NULL;
CREATE INDEX devices_by_ring ON devices (ring, device_id) WHERE ring IS NOT NULL;

CREATE INDEX device_updates_of_firmware ON device_updates (firmware_id, number);

-- Each of a part of the table, so that progress is written to few of them. What is in flight is few, and indexed; of the usual
-- priority is nearly everything.
CREATE INDEX device_updates_pending ON device_updates (number) WHERE state = 'pending';
CREATE INDEX device_updates_staged ON device_updates (number) WHERE state = 'staged';
CREATE INDEX device_updates_completed ON device_updates (number) WHERE state = 'completed';
CREATE INDEX device_updates_failed ON device_updates (number) WHERE state = 'failed';
CREATE INDEX device_updates_cancelled ON device_updates (number) WHERE state = 'cancelled';
CREATE INDEX device_updates_low ON device_updates (number) WHERE priority = 0;
CREATE INDEX device_updates_high ON device_updates (number) WHERE priority = 2;
CREATE INDEX device_updates_critical ON device_updates (number) WHERE priority = 3;
