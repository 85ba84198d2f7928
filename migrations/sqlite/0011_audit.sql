-- Who changed what: a chain of hashes, to which rows are only ever added (ADR 9).
CREATE TABLE audit_log (
    number         INTEGER PRIMARY KEY,       -- 1, 2, 3, … without a gap
    at             INTEGER NOT NULL,
    subject        TEXT    NOT NULL,
    roles          TEXT    NOT NULL,          -- names, separated by spaces
    authentication TEXT    NOT NULL,
    request_id     TEXT    NOT NULL,          -- empty: the service by itself, or the command line
    peer           TEXT,
    action         TEXT    NOT NULL,
    entity         TEXT    NOT NULL,
    entity_id      TEXT    NOT NULL,
    state_before   TEXT,                      -- JSON; its text is what is hashed
    state_after    TEXT,
    prev           TEXT    NOT NULL,          -- the hash of the row before, hex
    hash           TEXT    NOT NULL
) STRICT;
CREATE INDEX audit_log_entity ON audit_log (entity_id, number);
CREATE INDEX audit_log_subject ON audit_log (subject, number);
CREATE INDEX audit_log_request ON audit_log (request_id, number);

-- The end of the chain, so that its last rows cannot be cut off unnoticed. One row.
CREATE TABLE audit_head (
    one            INTEGER PRIMARY KEY CHECK (one = 1),
    number         INTEGER NOT NULL,
    hash           TEXT    NOT NULL
) STRICT;
INSERT INTO audit_head (one, number, hash)
VALUES (1, 0, '0000000000000000000000000000000000000000000000000000000000000000');

CREATE TRIGGER audit_log_update BEFORE UPDATE ON audit_log
BEGIN SELECT RAISE(ABORT, 'the audit log is only ever added to'); END;
CREATE TRIGGER audit_log_delete BEFORE DELETE ON audit_log
BEGIN SELECT RAISE(ABORT, 'the audit log is only ever added to'); END;
-- INSERT OR REPLACE deletes without asking the trigger above.
CREATE TRIGGER audit_log_insert BEFORE INSERT ON audit_log
WHEN NEW.number <= (SELECT number FROM audit_head)
BEGIN SELECT RAISE(ABORT, 'the audit log is only ever added to'); END;
CREATE TRIGGER audit_head_update BEFORE UPDATE ON audit_head
WHEN NEW.number <= OLD.number
BEGIN SELECT RAISE(ABORT, 'the end of the audit log only moves on'); END;
CREATE TRIGGER audit_head_delete BEFORE DELETE ON audit_head
BEGIN SELECT RAISE(ABORT, 'the end of the audit log only moves on'); END;
CREATE TRIGGER audit_head_insert BEFORE INSERT ON audit_head
BEGIN SELECT RAISE(ABORT, 'the end of the audit log only moves on'); END;
