-- Devices that were deleted, newest at the end: what was made for one in that very moment is found by it.
-- The file of the same number for SQLite says the same.

CREATE INDEX devices_deleted ON devices (deleted_at) WHERE deleted_at IS NOT NULL;
