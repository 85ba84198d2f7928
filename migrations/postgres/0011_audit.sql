-- Who changed what: a chain of hashes, to which rows are only ever added (ADR 9).
CREATE TABLE audit_log (
    number         BIGINT  PRIMARY KEY,       -- 1, 2, 3, … without a gap
    at             BIGINT  NOT NULL,
    subject        TEXT COLLATE "C" NOT NULL,
    roles          TEXT    NOT NULL,          -- names, separated by spaces
    authentication TEXT    NOT NULL,
    request_id     TEXT COLLATE "C" NOT NULL, -- empty: the service by itself, or the command line
    peer           TEXT,
    action         TEXT    NOT NULL,
    entity         TEXT    NOT NULL,
    entity_id      TEXT COLLATE "C" NOT NULL,
    state_before   TEXT,                      -- JSON; its text is what is hashed
    state_after    TEXT,
    prev           TEXT    NOT NULL,          -- the hash of the row before, hex
    hash           TEXT    NOT NULL
);
CREATE INDEX audit_log_entity ON audit_log (entity_id, number);
CREATE INDEX audit_log_subject ON audit_log (subject, number);
CREATE INDEX audit_log_request ON audit_log (request_id, number);

-- The end of the chain, so that its last rows cannot be cut off unnoticed. One row.
CREATE TABLE audit_head (
    one            BIGINT  PRIMARY KEY CHECK (one = 1),
    number         BIGINT  NOT NULL,
    hash           TEXT    NOT NULL
);
INSERT INTO audit_head (one, number, hash)
VALUES (1, 0, '0000000000000000000000000000000000000000000000000000000000000000');

CREATE FUNCTION audit_refuses() RETURNS TRIGGER LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the audit log is only ever added to' USING ERRCODE = 'integrity_constraint_violation';
END
$$;
CREATE TRIGGER audit_log_keeps BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_log
FOR EACH STATEMENT EXECUTE FUNCTION audit_refuses();
CREATE TRIGGER audit_head_update BEFORE UPDATE ON audit_head
FOR EACH ROW WHEN (NEW.number <= OLD.number) EXECUTE FUNCTION audit_refuses();
CREATE TRIGGER audit_head_keeps BEFORE INSERT OR DELETE OR TRUNCATE ON audit_head
FOR EACH STATEMENT EXECUTE FUNCTION audit_refuses();
