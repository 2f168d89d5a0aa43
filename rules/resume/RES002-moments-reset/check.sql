-- Tensors of optimizer state that were not zero when they were saved and are all zero after the resume: status `reset`
-- of a tensor (of a number it is RES003's). Tensors show as "dtype[shape] digest", numbers as JSON.
-- NULL: `saved` is NULL for what is new, and left out.
WITH counted AS (
    SELECT segment, start FROM resumes WHERE NOT superseded
),
tensors AS (
    SELECT counted.segment, start, param, bool_or(status = 'reset') AS zero
    FROM continuity JOIN counted USING (segment)
    WHERE item = 'optimizer' AND regexp_matches(saved, '^\w+\[')
    GROUP BY counted.segment, start, param
),
keys AS (
    SELECT segment, string_agg(DISTINCT key, ', ' ORDER BY key) AS keys
    FROM continuity
    WHERE item = 'optimizer' AND status = 'reset' AND regexp_matches(saved, '^\w+\[')
    GROUP BY segment
)
SELECT
    'resume' AS where_kind,
    'step ' || start AS where_name,
    start AS first_step,
    count(*) FILTER (WHERE zero) / count(*) AS value,
    0 AS threshold,
    count(*) FILTER (WHERE zero) / count(*) AS score,
    count(*) FILTER (WHERE zero) AS zeroed,
    count(*) AS tensors,
    any_value(keys.keys) AS keys
FROM tensors JOIN keys USING (segment)
GROUP BY segment, start
HAVING count(*) FILTER (WHERE zero) > 0
