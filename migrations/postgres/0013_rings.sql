-- How much of a fleet each ring takes, for campaigns that are created from now on; those there are keep their own.
-- The file of the same number for SQLite says the same.

CREATE TABLE deployment_rings (
    ring        TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    end_bucket  BIGINT NOT NULL,  -- cumulative, in hundredths of a percent
    updated_at  BIGINT,
    updated_by  TEXT
);
INSERT INTO deployment_rings (ring, end_bucket) VALUES ('canary', 500), ('early', 2500), ('broad', 7500), ('production', 10000);

-- Where a pinned device stands follows from the shares of each campaign.
ALTER TABLE devices DROP COLUMN ring_position;
