-- Rollback permits as they were signed: the one way below a device's security floor.
-- The file of the same number for SQLite says the same.

CREATE TABLE rollback_permits (
    permit_id    TEXT    NOT NULL PRIMARY KEY,
    device_id    TEXT,                -- one of both
    campaign_id  TEXT,
    from_sha256  TEXT    NOT NULL,
    to_sha256    TEXT    NOT NULL,
    expires_at   BIGINT  NOT NULL,
    envelope     TEXT    NOT NULL,
    created_at   BIGINT  NOT NULL,
    created_by   TEXT    NOT NULL,
    CHECK ((device_id IS NULL) <> (campaign_id IS NULL))
);
CREATE INDEX rollback_permits_newest ON rollback_permits (created_at DESC, permit_id);
CREATE INDEX rollback_permits_of_image ON rollback_permits (to_sha256);
