-- A rollback that is not done by then ends as failed; null for updates, which wait for as long as it takes.
ALTER TABLE device_updates ADD COLUMN give_up_at BIGINT;

-- Those that are open have the default of six hours from when they were made.
UPDATE device_updates SET give_up_at = created_at + 21600000000,
    check_at = LEAST(COALESCE(check_at, created_at + 21600000000), created_at + 21600000000)
    WHERE action = 'rollback' AND state IN ('pending', 'in_flight');
