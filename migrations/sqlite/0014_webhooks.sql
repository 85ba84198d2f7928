-- Webhooks, how far each has come, and the events that none of its tries could deliver.
-- The file of the same number for PostgreSQL says the same.

CREATE TABLE webhooks (
    number         INTEGER PRIMARY KEY AUTOINCREMENT,
    webhook_id     TEXT    NOT NULL UNIQUE,
    url            TEXT    NOT NULL,
    secret         TEXT    NOT NULL,              -- as it was shown once: requests are signed with it
    event_types    TEXT    NOT NULL,              -- JSON array; all when it is empty
    campaign_id    TEXT,                          -- of this campaign alone
    status         TEXT    NOT NULL CHECK (status IN ('active', 'paused', 'disabled')),
    reason         TEXT,                          -- why it is disabled
    place          INTEGER NOT NULL,              -- it needs no event up to this one any more
    tries          INTEGER NOT NULL DEFAULT 0,    -- of the event behind it
    failing_since  INTEGER,                       -- the first failure since something was taken; the two below go with it
    due_at         INTEGER,                       -- next try
    error          TEXT,
    delivered_at   INTEGER,
    created_at     INTEGER NOT NULL,
    created_by     TEXT    NOT NULL,
    updated_at     INTEGER NOT NULL               -- of what is wanted of it; what was read before does not overwrite it
) STRICT;

CREATE TABLE webhook_dead_letters (
    number      INTEGER PRIMARY KEY AUTOINCREMENT,
    webhook_id  TEXT    NOT NULL,
    event_id    INTEGER NOT NULL,
    event       TEXT    NOT NULL,                 -- JSON: the outbox may no longer have it
    tries       INTEGER NOT NULL,
    error       TEXT    NOT NULL,
    at          INTEGER NOT NULL
) STRICT;
CREATE INDEX webhook_dead_letters_of_webhook ON webhook_dead_letters (webhook_id, number);
