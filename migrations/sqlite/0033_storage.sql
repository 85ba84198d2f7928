-- Where the bytes of an image lie: 'local', in the folder of the process that took the upload, or 's3', in the bucket.
-- The file of the same number for PostgreSQL says the same.

ALTER TABLE firmware ADD COLUMN storage TEXT NOT NULL DEFAULT 'local';
