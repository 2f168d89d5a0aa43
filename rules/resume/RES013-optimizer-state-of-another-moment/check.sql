-- Tensors of optimizer state that have the format that they were saved in and other values (status `changed`). Missing, zero,
-- converted and exchanged ones are those of RES001, RES002, RES004 and RES005. Tensors show as "dtype[shape] digest".
-- NULL: `saved` is NULL for what is new, and left out.
WITH counted AS (
    SELECT segment, start FROM resumes WHERE NOT superseded
),
tensors AS (
    SELECT counted.segment, start, param, bool_or(status = 'changed') AS differs
    FROM continuity JOIN counted USING (segment)
    WHERE item = 'optimizer' AND regexp_matches(saved, '^\w+\[')
    GROUP BY counted.segment, start, param
),
keys AS (
    SELECT segment, string_agg(DISTINCT key, ', ' ORDER BY key) AS keys
    FROM continuity
    WHERE item = 'optimizer' AND status = 'changed' AND regexp_matches(saved, '^\w+\[')
    GROUP BY segment
)
SELECT
    'resume' AS where_kind,
    'step ' || start AS where_name,
    start AS first_step,
    count(*) FILTER (WHERE differs) / count(*) AS value,
    0 AS threshold,
    count(*) FILTER (WHERE differs) / count(*) AS score,
    count(*) FILTER (WHERE differs) AS differing,
    count(*) AS tensors,
    any_value(keys.keys) AS keys
FROM tensors JOIN keys USING (segment)
GROUP BY segment, start
HAVING count(*) FILTER (WHERE differs) > 0
