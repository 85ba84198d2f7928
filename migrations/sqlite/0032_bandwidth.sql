-- When each line whose bandwidth has a budget carries the next offer. Lines that have been free for a while are not here.
-- The file of the same number for PostgreSQL says the same.

CREATE TABLE bandwidth_lines (
    line     TEXT    NOT NULL PRIMARY KEY,  -- JSON: the service, a campaign, a group, or a tag and its value
    next_at  INTEGER NOT NULL
) STRICT;
