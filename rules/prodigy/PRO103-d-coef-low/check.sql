-- d_coef as configured.
-- NULL: no d_coef, no row.
SELECT
    'run' AS where_kind,
    'run' AS where_name,
    NULL AS first_step,
    NULL AS last_step,
    try_cast(value AS DOUBLE) AS value,
    $min_coef AS threshold,
    1.0 - try_cast(value AS DOUBLE) AS score
FROM config
WHERE key = 'optimizer.d_coef' AND try_cast(value AS DOUBLE) < $min_coef
