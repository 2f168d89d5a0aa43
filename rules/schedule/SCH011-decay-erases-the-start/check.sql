-- How much of what each tensor began with is gone: θ = kept · θ₀ + what is at right angles to it, so kept = 1 + (‖θ‖² −
-- ‖θ₀‖² − ‖θ − θ₀‖²) / 2‖θ₀‖². Training turns a tensor this way or that; decay takes the same share of every one, so
-- three quarters of them must have lost more than the threshold. What begins at zero (biases, a LoRA's B) has nothing
-- to lose and is left out; so is what is not finite, and NULL.
WITH ends AS (
    SELECT
        t.param,
        1 + (t.weight_norm::DOUBLE ^ 2 - p.weight_rms ^ 2 * p.numel - t.distance_from_start::DOUBLE ^ 2)
            / (2 * p.weight_rms ^ 2 * p.numel) AS kept,
        t.step
    FROM tensor_ends AS t JOIN params AS p USING (param)
    WHERE p.weight_rms > 0 AND isfinite(t.weight_norm) AND isfinite(t.distance_from_start)
),
lost AS (
    SELECT
        count(*) AS tensors,
        max(step) AS last_step,
        quantile_cont(1 - kept, 0.25) AS least,
        median(1 - kept) AS typical
    FROM ends
),
asked AS (
    SELECT max(weight_decay) AS weight_decay, 1 - exp(-max(total)) AS planned
    FROM (
        SELECT "group", max(weight_decay) AS weight_decay, sum(effective_lr * weight_decay) AS total
        FROM groups
        WHERE isfinite(effective_lr) AND isfinite(weight_decay)
        GROUP BY "group"
    )
)
SELECT
    'run' AS where_kind,
    'run' AS where_name,
    1 AS first_step,
    last_step,
    typical AS value,
    $max_lost AS threshold,
    least(1.0, typical) AS score,
    tensors,
    least,
    coalesce(weight_decay, 0) AS weight_decay,
    coalesce(planned, 0) AS planned,
    -- The decay that would have taken a hundredth.
    coalesce(weight_decay, 0) * 0.01 / -ln(greatest(1 - typical, 1e-6)) AS lower_decay
FROM lost, asked
WHERE least > $max_lost
