-- The mean of a falling schedule, as a share of its highest rate: from 1 down to `min_lr_ratio`. A line and a cosine, with
-- or without restarts, are half way on average, a polynomial is at 1 / (power + 1).
-- NULL: another schedule has no share, and so no row.
WITH plan AS (
    SELECT
        max(value) FILTER (WHERE key = 'scheduler.type') AS schedule,
        max(try_cast(value AS DOUBLE)) FILTER (WHERE key = 'scheduler.min_lr_ratio') AS least,
        max(try_cast(value AS DOUBLE)) FILTER (WHERE key = 'scheduler.power') AS power
    FROM config
),
means AS (
    SELECT
        schedule,
        least + (1 - least) * CASE
            WHEN schedule IN ('linear', 'cosine', 'cosine-with-restarts') THEN 0.5
            WHEN schedule = 'polynomial' THEN 1 / (power + 1)
        END AS mean
    FROM plan
)
SELECT
    'run' AS where_kind,
    'run' AS where_name,
    NULL AS first_step,
    NULL AS last_step,
    mean AS value,
    $min_mean AS threshold,
    1.0 - mean AS score,
    schedule
FROM means
WHERE mean < $min_mean
