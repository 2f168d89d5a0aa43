-- Iterations against the levels of a latent: each has at most half the side of the one before, and one element is the
-- last. A latent has an eighth of the picture's side.
-- NULL: a key that is not known gives no row.
WITH plan AS (
    SELECT
        max(try_cast(value AS DOUBLE)) FILTER (WHERE key = 'noise.multires_iterations') AS iterations,
        max(try_cast(value AS DOUBLE)) FILTER (WHERE key = 'data.resolution') / 8 AS side
    FROM config
),
counted AS (
    SELECT iterations, side, floor(log2(side)) + 1 AS levels FROM plan
)
SELECT
    'run' AS where_kind,
    'run' AS where_name,
    NULL AS first_step,
    NULL AS last_step,
    iterations AS value,
    greatest($max_iterations, levels) AS threshold,
    1.0 - greatest($max_iterations, levels) / iterations AS score,
    levels,
    side
FROM counted
WHERE iterations > $max_iterations AND iterations > levels
