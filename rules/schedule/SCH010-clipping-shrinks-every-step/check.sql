-- Clipping that leaves a small part of nearly every gradient, where the update follows the gradient's size, so that the
-- weights hardly move. What AdamW and its kin make of a gradient does not depend on its size: their updates are far
-- larger than lr times gradient, and are left out by `max_follow`, whatever the optimizer is called.
-- The intended update is taken where it is known: what rounding takes away is another fault (PREC001).
-- NaN and NULL (clipping off, no gradient, lr 0) are left out.
WITH clipped AS (
    SELECT step, clip_coef AS coef, grad_norm
    FROM steps
    WHERE isfinite(clip_coef) AND isfinite(grad_norm)
),
rates AS (
    SELECT step, max(effective_lr) AS effective_lr, max(lr) AS lr
    FROM groups
    WHERE isfinite(effective_lr)
    GROUP BY step
),
looks AS (
    SELECT
        step,
        sqrt(sum(coalesce(finite_intended_energy, step_energy))) AS moved,
        sqrt(sum(finite_weight_energy)) AS weights
    FROM tensor_steps
    GROUP BY step
),
updates AS (
    SELECT
        median(moved / nullif(effective_lr * coef * grad_norm, 0)) AS follow,
        median(moved / nullif(weights, 0)) AS moved
    FROM looks JOIN rates USING (step) JOIN clipped USING (step)
),
run AS (
    SELECT
        median(coef) AS coef,
        count(*) FILTER (WHERE coef < 1) / count(*) AS share,
        quantile_cont(grad_norm, 0.9) AS high_norm,
        median(coef * grad_norm) AS max_norm,
        min(step) AS first_step,
        max(step) AS last_step
    FROM clipped
)
SELECT
    'run' AS where_kind,
    'run' AS where_name,
    first_step,
    last_step,
    coef AS value,
    $max_coef AS threshold,
    1.0 - coef AS score,
    share,
    max_norm,
    high_norm,
    moved,
    (SELECT max(lr) FROM rates) * coef AS lr_left
FROM run, updates
WHERE coef < $max_coef AND follow < $max_follow AND moved < $min_moved
