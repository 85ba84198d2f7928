-- Integers are 64-bit; times are microseconds since 1970-01-01 UTC; booleans are 0 or 1; JSON is text.
-- The file of the same number for SQLite says the same.

CREATE TABLE devices (
    device_key        BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    device_id         TEXT COLLATE "C" NOT NULL UNIQUE,
    device_type       TEXT,
    device_model      TEXT    NOT NULL,
    manufacturer      TEXT,
    hw_revision       TEXT,
    firmware_version  TEXT,                -- as registered; device_latest.version is what it says itself
    group_names       TEXT    NOT NULL,    -- JSON array
    tags              TEXT    NOT NULL,    -- JSON object
    ring              TEXT,                -- pinned ring
    ring_position     BIGINT,             -- where the pinned ring begins on the wheel
    bucket            BIGINT  NOT NULL,
    verifier          TEXT    NOT NULL,
    registered_at     BIGINT  NOT NULL
);
CREATE INDEX devices_by_model ON devices (device_model);

CREATE TABLE device_groups (
    group_name  TEXT    NOT NULL,
    device_key  BIGINT  NOT NULL REFERENCES devices,
    PRIMARY KEY (group_name, device_key)
);

-- How a device was when last heard. Apart from `devices` because it changes with every heartbeat.
CREATE TABLE device_latest (
    device_key          BIGINT  PRIMARY KEY REFERENCES devices,
    online              BIGINT  NOT NULL DEFAULT 0,
    session             BIGINT  NOT NULL DEFAULT 0,
    last_seen           BIGINT,
    version             TEXT,
    slot                TEXT,
    confirmed           BIGINT,
    battery_percent     DOUBLE PRECISION,
    free_storage_bytes  BIGINT,
    security_floor      BIGINT,
    reported_model      TEXT,
    nonce               TEXT
) WITH (fillfactor = 70);  -- room to change rows in place
CREATE INDEX device_latest_online ON device_latest (device_key) WHERE online = 1;

-- The highest `seq` drawn for a device. Apart from `device_latest` so that offers never wait for heartbeats.
CREATE TABLE device_seqs (
    device_key  BIGINT  PRIMARY KEY REFERENCES devices,
    seq         BIGINT  NOT NULL DEFAULT 0
) WITH (fillfactor = 70);

-- No index by device and no foreign key: this is the hottest insert of all.
CREATE TABLE device_heartbeats (
    device_key   BIGINT  NOT NULL,
    received_at  BIGINT  NOT NULL,
    payload      TEXT    NOT NULL
);
CREATE INDEX device_heartbeats_by_time ON device_heartbeats USING brin (received_at);

CREATE TABLE firmware (
    firmware_id         TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    name                TEXT    NOT NULL,
    version             TEXT    NOT NULL,
    device_model        TEXT    NOT NULL,
    manufacturer        TEXT    NOT NULL,
    is_beta             BIGINT  NOT NULL,
    is_security_update  BIGINT  NOT NULL,
    metadata            TEXT    NOT NULL,  -- JSON: all that the uploader said; the columns above are for filters
    format              TEXT    NOT NULL,
    size                BIGINT  NOT NULL,
    sha256              TEXT COLLATE "C" NOT NULL,
    md5                 TEXT    NOT NULL,
    release_envelope    TEXT    NOT NULL,
    release_sha256      TEXT COLLATE "C" NOT NULL,
    download_count      BIGINT  NOT NULL DEFAULT 0,
    deprecated_at       BIGINT,
    created_at          BIGINT  NOT NULL,
    updated_at          BIGINT  NOT NULL,
    created_by          TEXT    NOT NULL
);
CREATE INDEX firmware_newest ON firmware (created_at DESC, firmware_id);
CREATE INDEX firmware_by_version ON firmware (device_model, version);
CREATE INDEX firmware_by_object ON firmware (sha256);

CREATE TABLE update_campaigns (
    number        BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,  -- rises in the order of creation; part of the update ids made for it
    campaign_id   TEXT COLLATE "C" NOT NULL UNIQUE,
    firmware_id   TEXT COLLATE "C" NOT NULL REFERENCES firmware,
    status        TEXT COLLATE "C" NOT NULL,
    priority      BIGINT  NOT NULL,
    spec          TEXT    NOT NULL,                   -- JSON
    state         TEXT COLLATE "C" NOT NULL,                   -- JSON
    target_count  BIGINT  NOT NULL,
    revision      BIGINT  NOT NULL,
    created_at    BIGINT  NOT NULL,
    updated_at    BIGINT  NOT NULL,
    created_by    TEXT    NOT NULL
);
CREATE INDEX update_campaigns_by_status ON update_campaigns (status, number);

-- A campaign's stages, with the counters of each: once for its updates, once for its rollbacks.
CREATE TABLE campaign_stages (
    campaign_id   TEXT COLLATE "C" NOT NULL REFERENCES update_campaigns (campaign_id),
    action        TEXT COLLATE "C" NOT NULL CHECK (action IN ('update', 'rollback')),
    stage         BIGINT  NOT NULL,
    start_bucket  BIGINT  NOT NULL,
    end_bucket    BIGINT  NOT NULL,
    pending       BIGINT  NOT NULL DEFAULT 0 CHECK (pending >= 0),
    in_flight     BIGINT  NOT NULL DEFAULT 0 CHECK (in_flight >= 0),
    completed     BIGINT  NOT NULL DEFAULT 0 CHECK (completed >= 0),
    failed        BIGINT  NOT NULL DEFAULT 0 CHECK (failed >= 0),
    cancelled     BIGINT  NOT NULL DEFAULT 0 CHECK (cancelled >= 0),
    PRIMARY KEY (campaign_id, action, stage)
) WITH (fillfactor = 20);

-- No foreign keys: a campaign makes these rows from the very tables they would name, 100,000 at a stroke, and nothing is
-- ever deleted from those.
CREATE TABLE device_updates (
    number            BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,  -- rises in the order of creation
    update_id         TEXT COLLATE "C" NOT NULL UNIQUE,
    device_key        BIGINT  NOT NULL,
    device_id         TEXT COLLATE "C" NOT NULL,
    campaign_id       TEXT COLLATE "C",
    action            TEXT COLLATE "C" NOT NULL CHECK (action IN ('update', 'rollback')),
    firmware_id       TEXT COLLATE "C",
    from_version      TEXT,
    to_version        TEXT    NOT NULL,
    stage             BIGINT  NOT NULL,
    priority          BIGINT  NOT NULL,
    attempt           BIGINT  NOT NULL DEFAULT 0,
    last_seq          BIGINT  NOT NULL DEFAULT 0,
    retries           BIGINT  NOT NULL DEFAULT 0,
    max_retries       BIGINT  NOT NULL,
    timeout_seconds   BIGINT  NOT NULL,
    percent           DOUBLE PRECISION NOT NULL DEFAULT 0,
    bytes_done        BIGINT  NOT NULL DEFAULT 0,
    bytes_total       BIGINT  NOT NULL DEFAULT 0,
    speed_bps         BIGINT  NOT NULL DEFAULT 0,
    state             TEXT COLLATE "C" NOT NULL CHECK (state IN ('pending', 'in_flight', 'completed', 'failed', 'cancelled')),
    due_at            BIGINT,             -- pending
    lost_at           BIGINT,             -- pending
    failure_code      TEXT,                -- pending: of the last attempt; failed
    failure_message   TEXT,
    failure_retry     TEXT,
    phase             TEXT COLLATE "C",                -- in flight, and the four after it
    since             BIGINT,
    lease_until       BIGINT,
    deadline          BIGINT,
    cancel_requested  BIGINT  NOT NULL DEFAULT 0,
    ended_at          BIGINT,             -- completed, failed, cancelled
    check_at          BIGINT,             -- when its time next runs out: first of lease and deadline, or lost_at
    nudge_at          BIGINT,             -- last change while an offer or a cancel is unanswered
    started_at        BIGINT,
    created_at        BIGINT  NOT NULL,
    updated_at        BIGINT  NOT NULL
);
-- At most one live update a device, whatever the code above does.
CREATE UNIQUE INDEX device_updates_live ON device_updates (device_key) WHERE state = 'in_flight';
CREATE INDEX device_updates_due ON device_updates (campaign_id, action, stage, due_at, number) WHERE state = 'pending';
CREATE INDEX device_updates_live_of_campaign ON device_updates (campaign_id, action, number) WHERE state = 'in_flight';
CREATE INDEX device_updates_check ON device_updates (check_at) WHERE check_at IS NOT NULL;
CREATE INDEX device_updates_nudge ON device_updates (nudge_at) WHERE nudge_at IS NOT NULL;
CREATE INDEX device_updates_of_campaign ON device_updates (campaign_id, number);
CREATE INDEX device_updates_of_device ON device_updates (device_key, number);

-- Why a rollback was made; all else is said by its update.
CREATE TABLE rollback_logs (
    number        BIGINT  PRIMARY KEY REFERENCES device_updates,
    campaign_id   TEXT COLLATE "C",
    device_id     TEXT COLLATE "C" NOT NULL,
    trigger_kind  TEXT    NOT NULL,
    reason        TEXT    NOT NULL
);
CREATE INDEX rollback_logs_of_campaign ON rollback_logs (campaign_id, number);
CREATE INDEX rollback_logs_of_device ON rollback_logs (device_id, number);

CREATE TABLE outbox (
    id          BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event_type  TEXT    NOT NULL,
    entity      TEXT    NOT NULL,
    data        TEXT    NOT NULL,          -- JSON
    at          BIGINT  NOT NULL
);

-- The last event that each receiver has taken.
CREATE TABLE outbox_places (
    sink   TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    place  BIGINT  NOT NULL
);
