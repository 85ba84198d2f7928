-- Which campaigns deploy their image ring by ring, as far as it is promoted.
-- The file of the same number for PostgreSQL says the same.

ALTER TABLE update_campaigns ADD COLUMN ring_deployment INTEGER NOT NULL DEFAULT 0;
CREATE INDEX update_campaigns_of_rings ON update_campaigns (firmware_id, number) WHERE ring_deployment = 1;
