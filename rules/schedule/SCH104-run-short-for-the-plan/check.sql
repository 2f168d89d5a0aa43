-- How often each image would be seen, in a run of few steps: a long one may well see each seldom.
-- NULL: no plan, no row.
WITH plan AS (
    SELECT
        max(try_cast(value AS DOUBLE)) FILTER (WHERE key = 'plan.seen_per_sample') AS seen,
        max(try_cast(value AS DOUBLE)) FILTER (WHERE key = 'plan.epochs') AS epochs,
        max(try_cast(value AS DOUBLE)) FILTER (WHERE key = 'plan.steps') AS steps
    FROM config
)
SELECT
    'run' AS where_kind,
    'run' AS where_name,
    NULL AS first_step,
    NULL AS last_step,
    seen AS value,
    $min_seen AS threshold,
    1.0 - least(1.0, steps / $enough_steps) AS score,
    steps,
    ceil(greatest($enough_steps, steps * $min_seen / seen))::INT AS enough,
    ceil(greatest($enough_steps * epochs / steps, epochs * $min_seen / seen))::INT AS enough_epochs
FROM plan
WHERE seen < $min_seen AND steps < $enough_steps
