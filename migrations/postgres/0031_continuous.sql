-- Why the device of a cancelled update was none of its campaign's any more; null when somebody withdrew it.
-- The file of the same number for SQLite says the same.

ALTER TABLE device_updates ADD COLUMN excluded TEXT;
