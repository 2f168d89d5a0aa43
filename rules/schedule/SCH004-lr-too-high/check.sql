-- Steps as large as a hundredth of the weights, measured early (a diverged model has large weights, which hide them), and
-- a held-out loss that did not come down with them.
-- NaN: a last loss that is not finite counts as not having come down; other NaNs are left out.
WITH per_step AS (
    SELECT step, sqrt(sum(finite_update_energy)) / nullif(sqrt(sum(finite_weight_energy)), 0) AS ratio
    FROM tensor_steps
    WHERE finite_update_energy IS NOT NULL
    GROUP BY step
),
early AS (
    SELECT median(ratio) AS ratio, min(step) AS first_step
    FROM per_step
    WHERE step <= (SELECT max(step) / 4 FROM tensor_steps)
),
curve AS (
    SELECT arg_min(loss, step) AS first_loss, arg_max(loss, step) AS last_loss, max(step) AS last_step
    FROM evals
    WHERE weights = 'raw' AND loss IS NOT NULL
)
SELECT
    'run' AS where_kind,
    'run' AS where_name,
    early.first_step,
    curve.last_step,
    early.ratio AS value,
    $max_update AS threshold,
    least(1.0, log10(early.ratio / $max_update) / 2 + 0.5) AS score,
    (SELECT max(lr) FROM groups) AS peak_lr,
    curve.first_loss,
    curve.last_loss,
    (SELECT max(lr) FROM groups) / 100 AS lower_lr
FROM early, curve
WHERE early.ratio > $max_update
    AND (NOT isfinite(curve.last_loss) OR (curve.first_loss - curve.last_loss) / curve.first_loss
        < CASE WHEN EXISTS (SELECT 1 FROM adapter_steps) THEN 0 ELSE $min_fall END)
