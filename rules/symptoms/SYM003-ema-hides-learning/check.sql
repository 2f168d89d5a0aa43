-- The fall of the held-out loss, of the weights and of their average, from the first evaluation of both to the last: an
-- average may begin at a resume.
-- NaN sorts above every number in DuckDB: a share that is not finite is not below the threshold, so it gives no hit.
WITH falls AS (
    SELECT
        weights,
        (arg_min(loss, step) - arg_max(loss, step)) / arg_min(loss, step) AS fall,
        max(step) AS last_step
    FROM evals
    WHERE loss IS NOT NULL AND step >= (SELECT min(step) FROM evals WHERE weights = 'ema')
    GROUP BY weights
),
both_falls AS (
    SELECT raw.fall AS raw_fall, ema.fall AS ema_fall, ema.last_step AS last_step
    FROM falls AS raw, falls AS ema
    WHERE raw.weights = 'raw' AND ema.weights = 'ema'
)
SELECT
    'run' AS where_kind,
    'run' AS where_name,
    0 AS first_step,
    last_step,
    greatest(ema_fall, 0) / raw_fall AS value,
    $min_share AS threshold,
    1.0 - greatest(ema_fall, 0) / raw_fall AS score,
    raw_fall,
    ema_fall
FROM both_falls
WHERE raw_fall >= $min_raw_fall AND greatest(ema_fall, 0) / raw_fall < $min_share
