-- How often each picture would be seen.
-- NULL: no plan, no row.
WITH plan AS (
    SELECT
        max(try_cast(value AS DOUBLE)) FILTER (WHERE key = 'plan.seen_per_sample') AS seen,
        max(try_cast(value AS DOUBLE)) FILTER (WHERE key = 'plan.epochs') AS epochs,
        max(try_cast(value AS DOUBLE)) FILTER (WHERE key = 'plan.steps') AS steps,
        max(try_cast(value AS DOUBLE)) FILTER (WHERE key = 'plan.samples') AS pictures
    FROM config
)
SELECT
    'run' AS where_kind,
    'run' AS where_name,
    NULL AS first_step,
    NULL AS last_step,
    seen AS value,
    $max_seen AS threshold,
    1.0 - $max_seen / seen AS score,
    steps,
    pictures,
    -- Half of the most, which leaves room to see the lowest loss.
    greatest(1, floor(steps * $max_seen / 2 / seen))::BIGINT AS fewer,
    greatest(1, floor(epochs * $max_seen / 2 / seen))::BIGINT AS fewer_epochs
FROM plan
WHERE seen > $max_seen
