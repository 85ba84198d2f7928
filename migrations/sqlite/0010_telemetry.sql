-- Heartbeat history by device, devices that were deleted.
-- The file of the same number for PostgreSQL says the same.

-- Closed runs of `device_heartbeats`, in the order of its numbers; what is behind the last one is not indexed yet.
CREATE TABLE heartbeat_segments (
    segment      INTEGER PRIMARY KEY,
    last_number  INTEGER NOT NULL,
    first_at     INTEGER NOT NULL,  -- earliest and latest `received_at`
    last_at      INTEGER NOT NULL
) STRICT;

-- Which numbers of a segment are whose. Written once a segment, in its own order, so that every insert is at the end.
CREATE TABLE heartbeat_index (
    segment     INTEGER NOT NULL,
    device_key  INTEGER NOT NULL,
    number      INTEGER NOT NULL,
    PRIMARY KEY (segment, device_key, number)
) STRICT, WITHOUT ROWID;

-- A deleted device keeps its row, for records, and has none in `device_latest`: whatever asks for devices asks for both.
ALTER TABLE devices ADD COLUMN deleted_at INTEGER;
