-- Tensors of optimizer state (moments and their like, not counters) that were saved and are not there after the resume.
-- Tensors show as "dtype[shape] digest", numbers as JSON. NULL: `saved` is NULL for what is new, and left out.
WITH counted AS (
    SELECT segment, start FROM resumes WHERE NOT superseded
),
tensors AS (
    SELECT counted.segment, start, param, bool_or(status = 'missing') AS lacking
    FROM continuity JOIN counted USING (segment)
    WHERE item = 'optimizer' AND regexp_matches(saved, '^\w+\[')
    GROUP BY counted.segment, start, param
),
keys AS (
    SELECT segment, string_agg(DISTINCT key, ', ' ORDER BY key) AS keys
    FROM continuity
    WHERE item = 'optimizer' AND status = 'missing' AND regexp_matches(saved, '^\w+\[')
    GROUP BY segment
)
SELECT
    'resume' AS where_kind,
    'step ' || start AS where_name,
    start AS first_step,
    count(*) FILTER (WHERE lacking) / count(*) AS value,
    0 AS threshold,
    count(*) FILTER (WHERE lacking) / count(*) AS score,
    count(*) FILTER (WHERE lacking) AS lacking,
    count(*) AS tensors,
    any_value(keys.keys) AS keys
FROM tensors JOIN keys USING (segment)
GROUP BY segment, start
HAVING count(*) FILTER (WHERE lacking) > 0
