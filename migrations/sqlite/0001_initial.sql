-- Integers are 64-bit; times are microseconds since 1970-01-01 UTC; booleans are 0 or 1; JSON is text.
-- The file of the same number for PostgreSQL says the same.

CREATE TABLE devices (
    device_key        INTEGER PRIMARY KEY AUTOINCREMENT,
    device_id         TEXT    NOT NULL UNIQUE,
    device_type       TEXT,
    device_model      TEXT    NOT NULL,
    manufacturer      TEXT,
    hw_revision       TEXT,
    firmware_version  TEXT,                -- as registered; device_latest.version is what it says itself
    group_names       TEXT    NOT NULL,    -- JSON array
    tags              TEXT    NOT NULL,    -- JSON object
    ring              TEXT,                -- pinned ring
    ring_position     INTEGER,             -- where the pinned ring begins on the wheel
    bucket            INTEGER NOT NULL,
    verifier          TEXT    NOT NULL,
    registered_at     INTEGER NOT NULL
) STRICT;
CREATE INDEX devices_by_model ON devices (device_model);

CREATE TABLE device_groups (
    group_name  TEXT    NOT NULL,
    device_key  INTEGER NOT NULL REFERENCES devices,
    PRIMARY KEY (group_name, device_key)
) STRICT, WITHOUT ROWID;

-- How a device was when last heard. Apart from `devices` because it changes with every heartbeat.
CREATE TABLE device_latest (
    device_key          INTEGER PRIMARY KEY REFERENCES devices,
    online              INTEGER NOT NULL DEFAULT 0,
    session             INTEGER NOT NULL DEFAULT 0,
    last_seen           INTEGER,
    version             TEXT,
    slot                TEXT,
    confirmed           INTEGER,
    battery_percent     REAL,
    free_storage_bytes  INTEGER,
    security_floor      INTEGER,
    reported_model      TEXT,
    nonce               TEXT
) STRICT;
CREATE INDEX device_latest_online ON device_latest (device_key) WHERE online = 1;

-- The highest `seq` drawn for a device. Apart from `device_latest` so that offers never wait for heartbeats.
CREATE TABLE device_seqs (
    device_key  INTEGER PRIMARY KEY REFERENCES devices,
    seq         INTEGER NOT NULL DEFAULT 0
) STRICT;

-- No index by device and no foreign key: this is the hottest insert of all.
CREATE TABLE device_heartbeats (
    number       INTEGER PRIMARY KEY,
    device_key   INTEGER NOT NULL,
    received_at  INTEGER NOT NULL,
    payload      TEXT    NOT NULL
) STRICT;

CREATE TABLE firmware (
    firmware_id         TEXT    NOT NULL PRIMARY KEY,
    name                TEXT    NOT NULL,
    version             TEXT    NOT NULL,
    device_model        TEXT    NOT NULL,
    manufacturer        TEXT    NOT NULL,
    is_beta             INTEGER NOT NULL,
    is_security_update  INTEGER NOT NULL,
    metadata            TEXT    NOT NULL,  -- JSON: all that the uploader said; the columns above are for filters
    format              TEXT    NOT NULL,
    size                INTEGER NOT NULL,
    sha256              TEXT    NOT NULL,
    md5                 TEXT    NOT NULL,
    release_envelope    TEXT    NOT NULL,
    release_sha256      TEXT    NOT NULL,
    download_count      INTEGER NOT NULL DEFAULT 0,
    deprecated_at       INTEGER,
    created_at          INTEGER NOT NULL,
    updated_at          INTEGER NOT NULL,
    created_by          TEXT    NOT NULL
) STRICT;
CREATE INDEX firmware_newest ON firmware (created_at DESC, firmware_id);
CREATE INDEX firmware_by_version ON firmware (device_model, version);
CREATE INDEX firmware_by_object ON firmware (sha256);

CREATE TABLE update_campaigns (
    number        INTEGER PRIMARY KEY AUTOINCREMENT,  -- rises in the order of creation; part of the update ids made for it
    campaign_id   TEXT    NOT NULL UNIQUE,
    firmware_id   TEXT    NOT NULL REFERENCES firmware,
    status        TEXT    NOT NULL,
    priority      INTEGER NOT NULL,
    spec          TEXT    NOT NULL,                   -- JSON
    state         TEXT    NOT NULL,                   -- JSON
    target_count  INTEGER NOT NULL,
    revision      INTEGER NOT NULL,
    created_at    INTEGER NOT NULL,
    updated_at    INTEGER NOT NULL,
    created_by    TEXT    NOT NULL
) STRICT;
CREATE INDEX update_campaigns_by_status ON update_campaigns (status, number);

-- A campaign's stages, with the counters of each: once for its updates, once for its rollbacks.
CREATE TABLE campaign_stages (
    campaign_id   TEXT    NOT NULL REFERENCES update_campaigns (campaign_id),
    action        TEXT    NOT NULL CHECK (action IN ('update', 'rollback')),
    stage         INTEGER NOT NULL,
    start_bucket  INTEGER NOT NULL,
    end_bucket    INTEGER NOT NULL,
    pending       INTEGER NOT NULL DEFAULT 0 CHECK (pending >= 0),
    in_flight     INTEGER NOT NULL DEFAULT 0 CHECK (in_flight >= 0),
    completed     INTEGER NOT NULL DEFAULT 0 CHECK (completed >= 0),
    failed        INTEGER NOT NULL DEFAULT 0 CHECK (failed >= 0),
    cancelled     INTEGER NOT NULL DEFAULT 0 CHECK (cancelled >= 0),
    PRIMARY KEY (campaign_id, action, stage)
) STRICT, WITHOUT ROWID;

-- No foreign keys: a campaign makes these rows from the very tables they would name, 100,000 at a stroke, and nothing is
-- ever deleted from those.
CREATE TABLE device_updates (
    number            INTEGER PRIMARY KEY AUTOINCREMENT,  -- rises in the order of creation
    update_id         TEXT    NOT NULL UNIQUE,
    device_key        INTEGER NOT NULL,
    device_id         TEXT    NOT NULL,
    campaign_id       TEXT,
    action            TEXT    NOT NULL CHECK (action IN ('update', 'rollback')),
    firmware_id       TEXT,
    from_version      TEXT,
    to_version        TEXT    NOT NULL,
    stage             INTEGER NOT NULL,
    priority          INTEGER NOT NULL,
    attempt           INTEGER NOT NULL DEFAULT 0,
    last_seq          INTEGER NOT NULL DEFAULT 0,
    retries           INTEGER NOT NULL DEFAULT 0,
    max_retries       INTEGER NOT NULL,
    timeout_seconds   INTEGER NOT NULL,
    percent           REAL    NOT NULL DEFAULT 0,
    bytes_done        INTEGER NOT NULL DEFAULT 0,
    bytes_total       INTEGER NOT NULL DEFAULT 0,
    speed_bps         INTEGER NOT NULL DEFAULT 0,
    state             TEXT    NOT NULL CHECK (state IN ('pending', 'in_flight', 'completed', 'failed', 'cancelled')),
    due_at            INTEGER,             -- pending
    lost_at           INTEGER,             -- pending
    failure_code      TEXT,                -- pending: of the last attempt; failed
    failure_message   TEXT,
    failure_retry     TEXT,
    phase             TEXT,                -- in flight, and the four after it
    since             INTEGER,
    lease_until       INTEGER,
    deadline          INTEGER,
    cancel_requested  INTEGER NOT NULL DEFAULT 0,
    ended_at          INTEGER,             -- completed, failed, cancelled
    check_at          INTEGER,             -- when its time next runs out: first of lease and deadline, or lost_at
    nudge_at          INTEGER,             -- last change while an offer or a cancel is unanswered
    started_at        INTEGER,
    created_at        INTEGER NOT NULL,
    updated_at        INTEGER NOT NULL
) STRICT;
-- At most one live update a device, whatever the code above does.
CREATE UNIQUE INDEX device_updates_live ON device_updates (device_key) WHERE state = 'in_flight';
CREATE INDEX device_updates_due ON device_updates (campaign_id, action, stage, due_at) WHERE state = 'pending';
CREATE INDEX device_updates_live_of_campaign ON device_updates (campaign_id, action, number) WHERE state = 'in_flight';
CREATE INDEX device_updates_check ON device_updates (check_at) WHERE check_at IS NOT NULL;
CREATE INDEX device_updates_nudge ON device_updates (nudge_at) WHERE nudge_at IS NOT NULL;
CREATE INDEX device_updates_of_campaign ON device_updates (campaign_id, number);
CREATE INDEX device_updates_of_device ON device_updates (device_key, number);

-- Why a rollback was made; all else is said by its update.
CREATE TABLE rollback_logs (
    number        INTEGER PRIMARY KEY REFERENCES device_updates,
    campaign_id   TEXT,
    device_id     TEXT    NOT NULL,
    trigger_kind  TEXT    NOT NULL,
    reason        TEXT    NOT NULL
) STRICT;
CREATE INDEX rollback_logs_of_campaign ON rollback_logs (campaign_id, number);
CREATE INDEX rollback_logs_of_device ON rollback_logs (device_id, number);

CREATE TABLE outbox (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    event_type  TEXT    NOT NULL,
    entity      TEXT    NOT NULL,
    data        TEXT    NOT NULL,          -- JSON
    at          INTEGER NOT NULL
) STRICT;

-- The last event that each receiver has taken.
CREATE TABLE outbox_places (
    sink   TEXT    NOT NULL PRIMARY KEY,
    place  INTEGER NOT NULL
) STRICT;
