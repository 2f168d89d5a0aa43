-- ⟨applied, intended⟩ / ‖intended‖² over all looks and all shadow tensors stored in less than float32.
-- The second half of the run counts: the first updates of an average that warms up are nearly copies. An average that
-- loses updates and is not behind all the same is no hit.
-- NaN: non-finite energies are left out. NULL: a shadow that equals the weights was to receive nothing.
WITH looks AS (
    SELECT step, dtype, delivered::DOUBLE AS delivered, intended_norm::DOUBLE ^ 2 AS energy, lost_count, nonzero_count
    FROM ema
    WHERE dtype IN ('bfloat16', 'float16')
        AND isfinite(delivered)
        AND isfinite(intended_norm)
        AND step > (SELECT max(step) / 2 FROM ema)
),
run AS (
    SELECT
        min(step) AS first_step,
        max(step) AS last_step,
        any_value(dtype) AS dtype,
        sum(delivered * energy) / sum(energy) AS delivered,
        sum(lost_count) / nullif(sum(nonzero_count), 0) AS lost_share
    FROM looks
    HAVING sum(energy) > 0
),
both_looked AS (
    SELECT max(e.step) AS step FROM ema AS e JOIN tensors AS t USING (step)
),
behind AS (
    SELECT
        (SELECT sqrt(sum(lag_norm::DOUBLE ^ 2)) FROM ema WHERE step = both_looked.step)
        / (SELECT sqrt(sum(distance_from_start::DOUBLE ^ 2)) FROM tensors WHERE step = both_looked.step) AS lag
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
    behind.lag
FROM run, behind
WHERE delivered < $min_delivered AND isfinite(behind.lag) AND behind.lag > $min_lag
