-- Figures that are kept with the updates they count, and what an update needs for them.
-- The file of the same number for SQLite says the same.

ALTER TABLE device_updates ADD COLUMN device_type TEXT;                          -- of its device, when it was made
ALTER TABLE device_updates ADD COLUMN bytes_earlier BIGINT NOT NULL DEFAULT 0;  -- downloaded by attempts before this one

UPDATE device_updates SET
    device_type = (SELECT d.device_type FROM devices d WHERE d.device_key = device_updates.device_key),
    bytes_total = COALESCE((SELECT f.size FROM firmware f WHERE f.firmware_id = device_updates.firmware_id), 0);
UPDATE device_updates SET bytes_done = bytes_total WHERE bytes_done > bytes_total;

-- The empty text stands for none.
CREATE TABLE update_figures (
    campaign_id   TEXT COLLATE "C" NOT NULL,
    action        TEXT COLLATE "C" NOT NULL,
    firmware_id   TEXT COLLATE "C" NOT NULL,
    device_type   TEXT COLLATE "C" NOT NULL,
    state         TEXT COLLATE "C" NOT NULL,
    failure_code  TEXT COLLATE "C" NOT NULL,  -- of failed ones
    updates       BIGINT NOT NULL,
    micros        BIGINT NOT NULL,  -- from the first offer to the completion, of completed ones
    bytes         BIGINT NOT NULL,  -- downloaded by attempts that have ended
    PRIMARY KEY (campaign_id, action, firmware_id, device_type, state, failure_code)
) WITH (fillfactor = 20);
CREATE INDEX update_figures_of_firmware ON update_figures (firmware_id, action, state);

-- The same by the minute (since 1970) in which updates ended; a day of it is kept.
CREATE TABLE update_ends (
    minute   BIGINT NOT NULL,
    action   TEXT COLLATE "C" NOT NULL,
    state    TEXT COLLATE "C" NOT NULL,
    updates  BIGINT NOT NULL,
    micros   BIGINT NOT NULL,
    bytes    BIGINT NOT NULL,
    PRIMARY KEY (minute, action, state)
) WITH (fillfactor = 20);

INSERT INTO update_figures (campaign_id, action, firmware_id, device_type, state, failure_code, updates, micros, bytes)
    SELECT COALESCE(campaign_id, ''), action, COALESCE(firmware_id, ''), COALESCE(device_type, ''), state,
        CASE WHEN state = 'failed' THEN COALESCE(failure_code, '') ELSE '' END, COUNT(*),
        SUM(CASE WHEN state = 'completed' AND ended_at - started_at BETWEEN 0 AND 31622400000000 THEN ended_at - started_at ELSE 0 END),
        SUM(CASE WHEN state = 'in_flight' THEN 0 ELSE bytes_done END)
    FROM device_updates GROUP BY 1, 2, 3, 4, 5, 6;
INSERT INTO update_ends (minute, action, state, updates, micros, bytes)
    SELECT ended_at / 60000000, action, state, COUNT(*),
        SUM(CASE WHEN state = 'completed' AND ended_at - started_at BETWEEN 0 AND 31622400000000 THEN ended_at - started_at ELSE 0 END),
        SUM(bytes_done)
    FROM device_updates WHERE ended_at IS NOT NULL GROUP BY 1, 2, 3;
