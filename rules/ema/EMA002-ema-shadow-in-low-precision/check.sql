-- ⟨applied, intended⟩ / ‖intended‖² over all looks and all shadow tensors stored in less than float32.
-- Of the looks, those after the average's warmup count, since the first updates of a warmed-up average are copies.
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
    lost_share
FROM run
WHERE delivered < $min_delivered
