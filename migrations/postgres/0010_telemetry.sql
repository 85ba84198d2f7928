-- Heartbeat history by device, devices that were deleted.
-- The file of the same number for SQLite says the same.

-- Numbered as on SQLite, where the row's own number serves. Times are looked up through segments.
DROP INDEX device_heartbeats_by_time;
ALTER TABLE device_heartbeats ADD COLUMN number BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY;

-- Closed runs of `device_heartbeats`, in the order of its numbers; what is behind the last one is not indexed yet.
CREATE TABLE heartbeat_segments (
    segment      BIGINT  PRIMARY KEY,
    last_number  BIGINT  NOT NULL,
    first_at     BIGINT  NOT NULL,  -- earliest and latest `received_at`
    last_at      BIGINT  NOT NULL
);

-- Which numbers of a segment are whose. Written once a segment, in its own order, so that every insert is at the end.
CREATE TABLE heartbeat_index (
    segment     BIGINT  NOT NULL,
    device_key  BIGINT  NOT NULL,
    number      BIGINT  NOT NULL,
    PRIMARY KEY (segment, device_key, number)
);

-- A deleted device keeps its row, for records, and has none in `device_latest`: whatever asks for devices asks for both.
ALTER TABLE devices ADD COLUMN deleted_at BIGINT;
