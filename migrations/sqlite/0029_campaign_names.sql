-- The devices that a campaign names stand apart from its spec: there may be 200,000 of them, and the spec is read with every step.
-- The file of the same number for PostgreSQL says the same.

CREATE TABLE campaign_names (
    campaign_id  TEXT NOT NULL PRIMARY KEY REFERENCES update_campaigns (campaign_id),
    named        TEXT NOT NULL  -- JSON
) STRICT;

INSERT INTO campaign_names (campaign_id, named)
    SELECT c.campaign_id, json_object(
        'targets', json(COALESCE(json_extract(c.spec, '$.targets.devices'), '[]')),
        'stages', json((SELECT json_group_object(CAST(s.key AS TEXT), json(json_extract(s.value, '$.takes.devices')))
            FROM json_each(c.spec, '$.stages') s WHERE json_type(s.value, '$.takes.devices') = 'array')))
    FROM update_campaigns c WHERE json_array_length(c.spec, '$.targets.devices') > 0
        OR EXISTS (SELECT 1 FROM json_each(c.spec, '$.stages') s WHERE json_type(s.value, '$.takes.devices') = 'array');

UPDATE update_campaigns SET spec = json_set(json_remove(spec, '$.targets.devices'),
    '$.targets.named', json_array_length(spec, '$.targets.devices'),
    '$.stages', json((SELECT json_group_array(json(CASE WHEN json_type(s.value, '$.takes.devices') = 'array'
        THEN json_set(s.value, '$.takes', 'named') ELSE s.value END)) FROM json_each(spec, '$.stages') s)))
    WHERE campaign_id IN (SELECT campaign_id FROM campaign_names);
