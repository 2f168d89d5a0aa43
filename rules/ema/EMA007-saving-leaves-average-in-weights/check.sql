-- The live weights right before and right after each save and each sample; and what an evaluation before them, which has
-- no checksums of its own, left in their place: the average, although the step's own update left the average apart.
-- That the weights stay at Schedule-Free's other point is another fault: there only the average counts.
-- NULL: a digest or a look that is missing gives no row. NaN: a lag that is not finite is no evidence.
WITH moments AS (
    SELECT
        segment,
        step,
        rank,
        CASE WHEN moment LIKE '%sample' THEN 'sampling' ELSE 'saving' END AS what,
        any_value(digest) FILTER (WHERE moment LIKE 'before%' AND item = 'raw') AS before,
        any_value(digest) FILTER (WHERE moment LIKE 'before%' AND item = 'ema') AS average,
        any_value(digest) FILTER (WHERE moment LIKE 'after%' AND item = 'raw') AS after,
        any_value(mode) FILTER (WHERE moment LIKE 'before%' AND item = 'raw') AS mode
    FROM checksums
    WHERE moment IN ('before_save', 'after_save', 'before_sample', 'after_sample')
    GROUP BY ALL
),
lags AS (
    SELECT
        segment,
        step,
        sqrt(sum(lag_energy)) / nullif(sqrt(sum(distance_energy)), 0) AS lag
    FROM ema_steps
    GROUP BY segment, step
),
first_moments AS (
    SELECT * FROM moments QUALIFY row_number() OVER (PARTITION BY segment, step, rank ORDER BY what) = 1
),
found AS (
    SELECT
        what,
        step,
        after <> before AND (mode IS NULL OR after = average) AS hit,
        coalesce(after = average, false) AS is_average
    FROM moments
    UNION ALL
    -- 'sampling' sorts before 'saving', and an evaluation comes before both.
    SELECT 'evaluating', step, before = average AND isfinite(lag) AND lag > $min_lag, true
    FROM first_moments JOIN lags USING (segment, step)
)
SELECT
    'moment' AS where_kind,
    what AS where_name,
    min(step) FILTER (WHERE hit) AS first_step,
    max(step) FILTER (WHERE hit) AS last_step,
    count(DISTINCT step) FILTER (WHERE hit) AS value,
    1.0 AS score,
    count(DISTINCT step) AS times,
    CASE WHEN bool_and(is_average) FILTER (WHERE hit) THEN 'the average' ELSE 'other weights' END AS left_there
FROM found
GROUP BY what
HAVING count(*) FILTER (WHERE hit) > 0
