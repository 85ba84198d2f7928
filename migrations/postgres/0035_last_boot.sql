-- The restart that counted last of a device that is watched after its update.
-- The file of the same number for SQLite says the same.

ALTER TABLE device_updates ADD COLUMN watch_boot TEXT;  -- the nonce of the check that told of it
