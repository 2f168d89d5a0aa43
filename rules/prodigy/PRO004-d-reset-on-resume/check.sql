-- d of each group after the resume against d when it was saved. d never falls by itself.
-- NaN shows as text in `continuity`, is no number, and gives no row (a NaN d is SYM004's business). NULL: a group that is
-- not there any more, no row.
WITH counted AS (
    SELECT segment, start FROM resumes WHERE NOT superseded
),
estimates AS (
    SELECT
        counted.segment,
        start,
        param AS name,
        try_cast(saved AS DOUBLE) AS saved_d,
        try_cast(loaded AS DOUBLE) AS loaded_d
    FROM continuity JOIN counted USING (segment)
    WHERE item = 'group' AND key = 'd'
),
recovered AS (
    SELECT estimates.segment, estimates.name, min(groups.step) - any_value(start) AS steps
    FROM estimates JOIN groups ON groups.segment = estimates.segment AND groups.name = estimates.name
    WHERE groups.d >= saved_d * $min_kept
    GROUP BY estimates.segment, estimates.name
)
SELECT
    'group' AS where_kind,
    estimates.name AS where_name,
    start AS first_step,
    start + recovered.steps AS last_step,
    loaded_d / saved_d AS value,
    $min_kept AS threshold,
    1.0 AS score,
    saved_d,
    loaded_d,
    CASE
        WHEN recovered.steps IS NULL THEN 'it has not come back to half of it since'
        ELSE 'it took ' || recovered.steps || ' steps to come back to half of it'
    END AS since
FROM estimates LEFT JOIN recovered USING (segment, name)
WHERE loaded_d < saved_d * $min_kept
