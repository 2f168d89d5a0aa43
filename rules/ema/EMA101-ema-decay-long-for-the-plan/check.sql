-- What the plan's arithmetic leaves of the first copy (plan.ema_initial_weight, of config/plan.py).
-- NULL: no average is planned, no row. NaN cannot come of a product of decays.
WITH plan AS (
    SELECT
        max(try_cast(value AS DOUBLE)) FILTER (WHERE key = 'plan.ema_initial_weight') AS initial_weight,
        max(try_cast(value AS DOUBLE)) FILTER (WHERE key = 'plan.ema_updates') AS updates,
        max(try_cast(value AS DOUBLE)) FILTER (WHERE key = 'ema.decay') AS decay
    FROM config
)
SELECT
    'run' AS where_kind,
    'run' AS where_name,
    NULL AS first_step,
    NULL AS last_step,
    initial_weight AS value,
    $max_initial_weight AS threshold,
    least(1.0, initial_weight) AS score,
    updates,
    decay,
    round(greatest(0.5, 1 - 10 / greatest(updates, 1)), 4) AS fitting_decay
FROM plan
WHERE initial_weight > $max_initial_weight
