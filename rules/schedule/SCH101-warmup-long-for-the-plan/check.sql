-- plan.warmup_steps against plan.steps.
-- NULL: no plan, no row.
WITH plan AS (
    SELECT
        max(try_cast(value AS DOUBLE)) FILTER (WHERE key = 'plan.warmup_steps') AS warmup,
        max(try_cast(value AS DOUBLE)) FILTER (WHERE key = 'plan.steps') AS steps
    FROM config
)
SELECT
    'run' AS where_kind,
    'run' AS where_name,
    NULL AS first_step,
    NULL AS last_step,
    warmup / steps AS value,
    $max_share AS threshold,
    least(1.0, warmup / steps) AS score,
    warmup,
    steps
FROM plan
WHERE warmup / steps > $max_share
