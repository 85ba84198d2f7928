-- Keys of people and services. Revoked and expired ones stay: records name their subjects.
CREATE TABLE api_keys (
    number         INTEGER PRIMARY KEY AUTOINCREMENT,
    key_id         TEXT    NOT NULL UNIQUE,
    secret_sha256  TEXT    NOT NULL UNIQUE,   -- hex; a secret has 256 random bits, so no slow hash is needed
    name           TEXT    NOT NULL,
    subject        TEXT    NOT NULL,
    roles          TEXT    NOT NULL,          -- names, separated by spaces
    created_at     INTEGER NOT NULL,
    created_by     TEXT    NOT NULL,
    expires_at     INTEGER,
    last_used_at   INTEGER,                   -- written now and then, not at every use
    revoked_at     INTEGER
) STRICT;
