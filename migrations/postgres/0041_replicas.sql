-- Replicas of the service on this database, whose gateway a device is connected to, and what replicas leave for each other.
-- The file of the same number for SQLite says the same.

CREATE TABLE replicas (
    replica_key    BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name           TEXT   NOT NULL,     -- of its data folder: a restart is another replica of the same name
    trust          TEXT   NOT NULL,     -- JSON array: digests of its trust roots, oldest first
    shares_images  BIGINT NOT NULL,     -- its images lie where others read them
    started_at     BIGINT NOT NULL,
    alive_until    BIGINT NOT NULL      -- unless it says so again
);

-- Read and taken away by the replica that they are for.
CREATE TABLE replica_notes (
    note_id      BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    replica_key  BIGINT NOT NULL,
    what         TEXT   NOT NULL,
    device_key   BIGINT NOT NULL,
    device_id    TEXT   NOT NULL,
    session      BIGINT                 -- the one that is over
);
CREATE INDEX replica_notes_of_replica ON replica_notes (replica_key, note_id);

-- The replica whose gateway it is connected to; null while it is not, and of devices at a broker.
ALTER TABLE device_latest ADD COLUMN replica_key BIGINT;
-- When its secret was replaced: what was opened before is over.
ALTER TABLE devices ADD COLUMN secret_at BIGINT;

-- Keys that every replica has to know, made by the first: of download links.
CREATE TABLE shared_keys (
    name  TEXT NOT NULL PRIMARY KEY,
    hex   TEXT NOT NULL
);
