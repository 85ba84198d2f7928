-- Keys of people and services. Revoked and expired ones stay: records name their subjects.
CREATE TABLE api_keys (
    number         BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    key_id         TEXT COLLATE "C" NOT NULL UNIQUE,
    secret_sha256  TEXT COLLATE "C" NOT NULL UNIQUE,  -- hex; a secret has 256 random bits, so no slow hash is needed
    name           TEXT    NOT NULL,
    subject        TEXT    NOT NULL,
    roles          TEXT    NOT NULL,          -- names, separated by spaces
    created_at     BIGINT  NOT NULL,
    created_by     TEXT    NOT NULL,
    expires_at     BIGINT,
    last_used_at   BIGINT,                    -- written now and then, not at every use
    revoked_at     BIGINT
);
