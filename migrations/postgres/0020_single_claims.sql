-- What an image asks of a device, beside its metadata, so that claims of single devices can look at it; and those claims in their
-- order: what is most urgent first, then what is due longest.
-- The file of the same number for SQLite says the same.

ALTER TABLE firmware ADD COLUMN min_battery_percent BIGINT;
ALTER TABLE firmware ADD COLUMN min_free_storage_bytes BIGINT;
UPDATE firmware SET
    min_battery_percent = CAST(CAST(metadata AS JSONB) ->> 'min_battery_percent' AS BIGINT),
    min_free_storage_bytes = CAST(CAST(metadata AS JSONB) ->> 'min_free_storage_bytes' AS BIGINT);

CREATE INDEX device_updates_singles ON device_updates (action, priority DESC, due_at, number)
    WHERE state = 'pending' AND campaign_id IS NULL;

-- Bytes of several attempts were added up once, and are now counted once: figures from before that are counted anew.
UPDATE device_updates SET bytes_earlier = bytes_total WHERE bytes_earlier > bytes_total;
DELETE FROM update_figures;
DELETE FROM update_ends;
INSERT INTO update_figures (campaign_id, action, firmware_id, device_type, state, failure_code, updates, micros, bytes)
    SELECT COALESCE(campaign_id, ''), action, COALESCE(firmware_id, ''), COALESCE(device_type, ''), state,
        CASE WHEN state = 'failed' THEN COALESCE(failure_code, '') ELSE '' END, COUNT(*),
        SUM(CASE WHEN state = 'completed' AND ended_at - started_at BETWEEN 0 AND 31622400000000 THEN ended_at - started_at ELSE 0 END),
        SUM(CASE WHEN state = 'in_flight' OR bytes_earlier > bytes_done THEN bytes_earlier ELSE bytes_done END)
    FROM device_updates GROUP BY 1, 2, 3, 4, 5, 6;
INSERT INTO update_ends (minute, action, state, updates, micros, bytes)
    SELECT ended_at / 60000000, action, state, COUNT(*),
        SUM(CASE WHEN state = 'completed' AND ended_at - started_at BETWEEN 0 AND 31622400000000 THEN ended_at - started_at ELSE 0 END),
        SUM(CASE WHEN bytes_earlier > bytes_done THEN bytes_earlier ELSE bytes_done END)
    FROM device_updates WHERE ended_at IS NOT NULL GROUP BY 1, 2, 3;
