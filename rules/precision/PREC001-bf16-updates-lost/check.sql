-- ⟨applied, intended⟩ / ‖intended‖² over all looks and all trained tensors that are stored in bf16: each look and tensor
-- weighs as much as the energy that it was to receive.
-- That many elements stand still is no hit: those that move may carry the update (see README).
-- NaN: non-finite energies are left out; a run that went non-finite has other findings.
WITH looks AS (
    SELECT t.*
    FROM tensor_windows AS t JOIN params AS p USING (param)
    WHERE p.dtype = 'bfloat16'
),
run AS (
    SELECT
        min(finite_first_step) AS first_step,
        max(finite_last_step) AS last_step,
        sum(finite_delivered_energy) / sum(finite_intended_energy) AS delivered,
        sqrt(sum(finite_applied_energy) / sum(finite_intended_energy)) AS applied,
        sum(finite_lost_count) / nullif(sum(finite_nonzero_count), 0) AS lost_share
    FROM looks
    HAVING sum(finite_intended_energy) > 0
)
SELECT
    'run' AS where_kind,
    'run' AS where_name,
    first_step,
    last_step,
    delivered AS value,
    $min_delivered AS threshold,
    least(1.0, greatest(0.0, 1.0 - delivered)) AS score,
    lost_share,
    applied
FROM run
WHERE delivered < $min_delivered
