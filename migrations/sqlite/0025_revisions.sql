-- How often an admin has changed what is registered of a device, what is wanted of a webhook, and the rings: who changes what they
-- have read can say so. What devices say, and deliveries, change none.
-- The file of the same number for PostgreSQL says the same.

ALTER TABLE devices ADD COLUMN revision INTEGER NOT NULL DEFAULT 0;
ALTER TABLE webhooks ADD COLUMN revision INTEGER NOT NULL DEFAULT 0;
ALTER TABLE deployment_rings ADD COLUMN revision INTEGER NOT NULL DEFAULT 0;
