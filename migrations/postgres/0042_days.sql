-- The history of heartbeats in partitions, one a day (UTC) of `received_at`, so that a day that is over goes at a stroke (ADR 7).
-- SQLite keeps one table: the file of the same number there changes nothing.

-- Nobody draws a number or writes a row meanwhile.
LOCK TABLE device_heartbeats IN ACCESS EXCLUSIVE MODE;

DO $$
DECLARE
    -- The end of tomorrow: partitions of days begin there.
    days_from CONSTANT BIGINT := (FLOOR(EXTRACT(EPOCH FROM NOW()) / 86400)::BIGINT + 2) * 86400000000;
    attach CONSTANT TEXT := FORMAT(
        'ALTER TABLE device_heartbeats ATTACH PARTITION device_heartbeats_initial FOR VALUES FROM (MINVALUE) TO (%s)',
        days_from
    );
    last_drawn BIGINT;
    is_drawn BOOLEAN;
BEGIN
    -- An identity of a partitioned table takes PostgreSQL 17: a sequence goes on after the last number instead.
    EXECUTE FORMAT('SELECT last_value, is_called FROM %s', pg_get_serial_sequence('device_heartbeats', 'number'))
        INTO last_drawn, is_drawn;
    ALTER TABLE device_heartbeats ALTER COLUMN number DROP IDENTITY;
    ALTER TABLE device_heartbeats RENAME TO device_heartbeats_initial;
    ALTER INDEX device_heartbeats_pkey RENAME TO device_heartbeats_initial_pkey;

    CREATE SEQUENCE device_heartbeats_number_seq;
    PERFORM setval('device_heartbeats_number_seq', last_drawn, is_drawn);
    -- Each partition has a key of its own, by number: one of the whole table would have to hold `received_at` too.
    CREATE TABLE device_heartbeats (
        device_key   BIGINT  NOT NULL,
        received_at  BIGINT  NOT NULL,
        payload      TEXT    NOT NULL,
        number       BIGINT  NOT NULL DEFAULT nextval('device_heartbeats_number_seq')
    ) PARTITION BY RANGE (received_at);
    ALTER SEQUENCE device_heartbeats_number_seq OWNED BY device_heartbeats.number;

    -- What is of no day that has a partition: a clock that jumps stops no insert.
    CREATE TABLE device_heartbeats_default (LIKE device_heartbeats, PRIMARY KEY (number));
    -- All that was there stays where it is, and is looked through once; but for what a clock that ran ahead has left behind.
    BEGIN
        EXECUTE attach;
    EXCEPTION WHEN check_violation THEN
        WITH ahead AS (
            DELETE FROM device_heartbeats_initial WHERE received_at >= days_from
                RETURNING device_key, received_at, payload, number
        )
        INSERT INTO device_heartbeats_default (device_key, received_at, payload, number)
            SELECT device_key, received_at, payload, number FROM ahead;
        EXECUTE attach;
    END;
    ALTER TABLE device_heartbeats ATTACH PARTITION device_heartbeats_default DEFAULT;
END
$$;
