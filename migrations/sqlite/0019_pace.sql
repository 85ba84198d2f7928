-- When a campaign's next offer is due, by its rate. Apart from its state, which changes with its revision.
-- The file of the same number for PostgreSQL says the same.

ALTER TABLE update_campaigns ADD COLUMN next_offer_at INTEGER;
