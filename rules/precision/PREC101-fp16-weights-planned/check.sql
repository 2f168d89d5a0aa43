-- precision.weights as configured.
-- NULL: no such key, no row.
SELECT
    'run' AS where_kind,
    'run' AS where_name,
    NULL AS first_step,
    NULL AS last_step,
    1.0 AS value,
    NULL AS threshold,
    1.0 AS score
FROM config
WHERE key = 'precision.weights' AND value = 'fp16'
