-- ⟨applied, intended⟩ / ‖intended‖² over all looks and all trained tensors that are stored in bf16: each look and tensor
-- weighs as much as the energy that it was to receive.
-- That many elements stand still is no hit: those that move may carry the update (see README).
-- NaN: non-finite energies are left out; a run that went non-finite has other findings.
WITH looks AS (
    SELECT
        t.step,
        t.delivered::DOUBLE AS delivered,
        t.intended_norm::DOUBLE ^ 2 AS energy,
        t.lost_count,
        t.nonzero_count
    FROM tensors AS t JOIN params AS p USING (param)
    WHERE p.dtype = 'bfloat16' AND isfinite(t.delivered) AND isfinite(t.intended_norm)
),
run AS (
    SELECT
        min(step) AS first_step,
        max(step) AS last_step,
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
    lost_share
FROM run
WHERE delivered < $min_delivered
