-- Trained tensors that are stored in fp16, with a consequence: something went non-finite, or the updates do not arrive.
-- fp16 without a consequence is no hit. NaN is what is looked for here; a NaN `delivered` is left out of the share.
WITH stored AS (
    SELECT count(*) AS tensors
    FROM params
    WHERE dtype = 'float16' AND in_optimizer
),
looks AS (
    SELECT t.*
    FROM tensor_windows AS t JOIN params AS p USING (param)
    WHERE p.dtype = 'float16'
),
arrival AS (
    SELECT sum(finite_delivered_energy) / nullif(sum(finite_intended_energy), 0) AS delivered
    FROM looks
),
nonfinite AS (
    SELECT min(step) AS first_step
    FROM (
        SELECT nonfinite_first_step AS step FROM looks
        UNION ALL
        SELECT step FROM steps WHERE NOT isfinite(loss)
    )
)
SELECT
    'run' AS where_kind,
    'run' AS where_name,
    coalesce(nonfinite.first_step, 1) AS first_step,
    (SELECT max(last_step) FROM looks) AS last_step,
    CASE WHEN nonfinite.first_step IS NULL THEN arrival.delivered ELSE 0.0 END AS value,
    $min_delivered AS threshold,
    CASE
        WHEN nonfinite.first_step IS NOT NULL THEN 1.0
        ELSE least(1.0, greatest(0.0, 1.0 - arrival.delivered))
    END AS score,
    CASE
        WHEN nonfinite.first_step IS NOT NULL
            THEN format('the training is not finite from step {} on', nonfinite.first_step)
        ELSE format('of what the optimizer asked for {:.1f} % arrived', 100 * arrival.delivered)
    END AS what,
    stored.tensors AS fp16_tensors
FROM stored, arrival, nonfinite
WHERE stored.tensors > 0 AND (nonfinite.first_step IS NOT NULL OR arrival.delivered < $min_delivered)
