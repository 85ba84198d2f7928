-- The history of heartbeats in partitions, one a day: on PostgreSQL, by the file of the same number there. Here it stays one table, of
-- which rows go by their number (ADR 7).

SELECT 1;
