-- The devices that a campaign names stand apart from its spec: there may be 200,000 of them, and the spec is read with every step.
-- The file of the same number for SQLite says the same.

CREATE TABLE campaign_names (
    campaign_id  TEXT COLLATE "C" NOT NULL PRIMARY KEY REFERENCES update_campaigns (campaign_id),
    named        TEXT NOT NULL  -- JSON
);

INSERT INTO campaign_names (campaign_id, named)
    SELECT c.campaign_id, CAST(jsonb_build_object(
        'targets', COALESCE(c.spec -> 'targets' -> 'devices', '[]'),
        'stages', COALESCE((SELECT jsonb_object_agg(s.number - 1, s.value -> 'takes' -> 'devices')
            FROM jsonb_array_elements(c.spec -> 'stages') WITH ORDINALITY s (value, number)
            WHERE jsonb_typeof(s.value -> 'takes' -> 'devices') = 'array'), '{}')) AS TEXT)
    FROM (SELECT campaign_id, CAST(spec AS JSONB) AS spec FROM update_campaigns) c
    WHERE jsonb_array_length(COALESCE(c.spec -> 'targets' -> 'devices', '[]')) > 0
        OR EXISTS (SELECT 1 FROM jsonb_array_elements(c.spec -> 'stages') s (value)
            WHERE jsonb_typeof(s.value -> 'takes' -> 'devices') = 'array');

UPDATE update_campaigns c SET spec = CAST(jsonb_set(jsonb_set(CAST(c.spec AS JSONB) #- '{targets,devices}',
    '{targets,named}', to_jsonb(jsonb_array_length(COALESCE(CAST(c.spec AS JSONB) -> 'targets' -> 'devices', '[]')))),
    '{stages}', (SELECT jsonb_agg(CASE WHEN jsonb_typeof(s.value -> 'takes' -> 'devices') = 'array'
        THEN jsonb_set(s.value, '{takes}', '"named"') ELSE s.value END ORDER BY s.number)
        FROM jsonb_array_elements(CAST(c.spec AS JSONB) -> 'stages') WITH ORDINALITY s (value, number))) AS TEXT)
    WHERE c.campaign_id IN (SELECT n.campaign_id FROM campaign_names n);
