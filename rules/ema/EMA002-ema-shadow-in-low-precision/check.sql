-- ⟨applied, intended⟩ / ‖intended‖² over all looks and all shadow tensors stored in less than float32.
-- The second half of the run counts: the first updates of an average that warms up are nearly copies. An average that
-- loses updates and is not behind all the same is no hit.
-- NaN: non-finite energies are left out. NULL: a shadow that equals the weights was to receive nothing.
WITH looks AS (
    SELECT *
    FROM ema_steps
    WHERE dtype IN ('bfloat16', 'float16')
        AND finite_intended_energy IS NOT NULL
        AND step > (SELECT max(step) / 2 FROM ema_steps)
),
run AS (
    SELECT
        min(step) AS first_step,
        max(step) AS last_step,
        any_value(dtype) AS dtype,
        sum(finite_delivered_energy) / sum(finite_intended_energy) AS delivered,
        sqrt(sum(finite_applied_energy) / sum(finite_intended_energy)) AS applied,
        sum(finite_lost_count) / nullif(sum(finite_nonzero_count), 0) AS lost_share
    FROM looks
    HAVING sum(finite_intended_energy) > 0
),
both_looked AS (
    SELECT max(e.step) AS step FROM ema_steps AS e JOIN tensor_steps AS t USING (step)
),
behind AS (
    SELECT
        (SELECT sqrt(sum(lag_energy)) FROM ema_steps WHERE step = both_looked.step)
        / (SELECT sqrt(sum(distance_energy)) FROM tensor_steps WHERE step = both_looked.step) AS lag
    FROM both_looked
)
SELECT
    'run' AS where_kind,
    'run' AS where_name,
    first_step,
    last_step,
    delivered AS value,
    $min_delivered AS threshold,
    least(1.0, greatest(0.0, 1.0 - delivered)) AS score,
    dtype,
    lost_share,
    applied,
    behind.lag
FROM run, behind
WHERE delivered < $min_delivered AND isfinite(behind.lag) AND behind.lag > $min_lag
