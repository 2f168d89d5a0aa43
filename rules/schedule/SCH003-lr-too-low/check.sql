-- Weights (for a LoRA: what it adds) that hardly moved although the updates arrived and the lr was not held down by a
-- warmup, and a held-out loss that hardly fell.
-- NaN sorts above every number, so `NaN < x` is false: no hit. An optimizer whose step cannot be recomputed counts as delivering.
WITH weights AS (
    SELECT max(step) AS steps,
        sqrt(sum(distance_energy)) / nullif(sqrt(sum(weight_energy)), 0) AS moved
    FROM tensor_steps
    WHERE step = (SELECT max(step) FROM tensor_steps)
),
lora AS (
    SELECT sqrt(sum(delta_energy)) / nullif(sqrt(sum(base_energy)), 0) AS moved,
        min(scale_min) AS scale
    FROM adapter_steps
    WHERE step = (SELECT max(step) FROM adapter_steps)
),
arrival AS (
    SELECT coalesce(sum(finite_delivered_energy) / nullif(sum(finite_intended_energy), 0), 1) AS delivered
    FROM tensor_steps
),
-- Where eps outweighs the gradients, steps are small for another reason (PREC003).
eps AS (
    SELECT coalesce(sum(eps_dominated_sum * p.numel) / nullif(sum(eps_looks * p.numel), 0), 0) AS dominated
    FROM tensor_windows AS t JOIN params AS p USING (param)
),
lr AS (
    SELECT max(lr) AS peak_lr, max(base_lr) AS base_lr FROM groups
),
curve AS (
    SELECT (arg_min(loss, step) - arg_max(loss, step)) / arg_min(loss, step) AS fall
    FROM evals
    WHERE weights = 'raw' AND loss IS NOT NULL
),
run AS (
    SELECT
        weights.steps,
        coalesce(lora.moved, weights.moved) AS moved,
        lr.peak_lr,
        curve.fall,
        -- As many tenfolds as bring the movement to a hundredth of the weights' norm, four at the most.
        power(10, least(4, ceil(log10(1e-2 / greatest(coalesce(lora.moved, weights.moved), 1e-9))))) AS raise
    FROM weights, lora, arrival, eps, lr, curve
    WHERE arrival.delivered >= $min_delivered
        AND eps.dominated < $max_eps_share
        AND lr.peak_lr >= 0.5 * lr.base_lr
        AND coalesce(lora.scale, 1) >= 0.06
)
SELECT
    'run' AS where_kind,
    'run' AS where_name,
    1 AS first_step,
    steps AS last_step,
    moved AS value,
    $min_moved AS threshold,
    1.0 - moved / $min_moved AS score,
    steps,
    peak_lr,
    fall,
    CASE WHEN peak_lr = 0 THEN 1e-4 ELSE peak_lr * raise END AS higher_lr
FROM run
WHERE moved < $min_moved AND fall < $min_fall
