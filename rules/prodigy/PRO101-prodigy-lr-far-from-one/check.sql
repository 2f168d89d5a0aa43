-- optimizer.lr as configured.
-- NULL: no lr, no row.
SELECT
    'run' AS where_kind,
    'run' AS where_name,
    NULL AS first_step,
    NULL AS last_step,
    try_cast(value AS DOUBLE) AS value,
    $min_lr AS threshold,
    CASE
        WHEN try_cast(value AS DOUBLE) < $min_lr THEN 1.0 - try_cast(value AS DOUBLE)
        ELSE 1.0 - $max_lr / try_cast(value AS DOUBLE)
    END AS score
FROM config
WHERE key = 'optimizer.lr' AND (try_cast(value AS DOUBLE) < $min_lr OR try_cast(value AS DOUBLE) > $max_lr)
