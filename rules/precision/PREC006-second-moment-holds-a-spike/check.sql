-- Σ g² / Σ v̂ over all tensors in the second half of the run, the median of the looks there. v̂ is what g² is divided
-- by, an average of earlier g²; of each tensor it is known by its norm and the ratio of both.
-- As an average it is no larger than the largest g² before, so a ratio of 0.01 needs a gradient ten times as large as
-- now: `spike` is the largest one of the run, as clipped, against the median at these looks.
-- Weights that have grown to a multiple of what they were at the first look were thrown away, and the gradients died
-- with them: then small steps are no loss, and there is no hit. (SCH004 is about that.) `frozen` tells of v's that did
-- not change by a bit in that half: in bf16 a decay of 0.999 is rounded away.
-- Of a long run fifty looks, evenly spread, tell it as well as all.
-- NaN: weights that are not finite give no hit (SYM004); NaN and NULL: tensors without gradient or second moment have
-- no ratio and are left out, as are gradients that are all 0 (LOOP001, PREC005), of which no v̂ can be told.
WITH late AS (
    SELECT t.step, t.param, t.g2_over_v::DOUBLE AS ratio, t.grad_norm::DOUBLE AS gradient, t.state_v_max, t.state_v_min
    FROM tensor_looks AS t
    WHERE t.step > (SELECT max(step) / 2 FROM tensor_steps)
        AND isfinite(t.g2_over_v) AND t.g2_over_v > 0 AND isfinite(t.grad_norm) AND t.grad_norm > 0
),
looks AS (
    SELECT step, sum(gradient ^ 2) / sum(gradient ^ 2 / ratio) AS ratio, sqrt(sum(gradient ^ 2)) AS gradient
    FROM late
    GROUP BY step
),
run AS (
    SELECT median(ratio) AS ratio, median(gradient) AS gradient, max(step) AS last_step
    FROM looks
),
spike AS (
    SELECT max(gradient) AS gradient, arg_max(step, gradient) AS step
    FROM (
        SELECT step, grad_norm * coalesce(clip_coef, 1) AS gradient
        FROM steps
        WHERE isfinite(grad_norm) AND NOT coalesce(skipped, false)
    )
),
sizes AS (
    SELECT sqrt(arg_max(energy, step) / arg_min(energy, step)) AS growth
    FROM (SELECT step, max(weight_energy) AS energy FROM tensor_steps GROUP BY step)
),
moments AS (
    SELECT param, max(state_v_max) = min(state_v_max) AND max(state_v_min) = min(state_v_min) AS frozen
    FROM late
    WHERE isfinite(state_v_max)
    GROUP BY param
)
SELECT
    'run' AS where_kind,
    'run' AS where_name,
    spike.step AS first_step,
    run.last_step,
    run.ratio AS value,
    $max_ratio AS threshold,
    greatest(0.0, 1.0 - sqrt(run.ratio)) AS score,
    sqrt(run.ratio) AS step_share,
    spike.gradient / run.gradient AS spike,
    (SELECT avg(frozen::INT) FROM moments) AS frozen,
    (SELECT any_value(betas) FROM groups) AS betas
FROM run, spike, sizes
WHERE run.ratio < $max_ratio AND sizes.growth < $max_growth
