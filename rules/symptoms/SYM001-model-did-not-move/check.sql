-- How far the trained weights are from where they began, at the last look; for a LoRA, what it adds to the weights that
-- it adapts (its A moves from a random start, which says nothing).
-- NaN: a comparison with NaN is false, so a run that went non-finite is no hit here (SYM004 is its symptom).
WITH last_look AS (
    SELECT max(step) AS step FROM tensor_steps WHERE distance_energy IS NOT NULL
),
weights AS (
    SELECT sqrt(sum(distance_energy)) / nullif(sqrt(sum(weight_energy)), 0) AS moved
    FROM tensor_steps
    WHERE step = (SELECT step FROM last_look)
),
lora AS (
    SELECT sqrt(sum(delta_energy)) / nullif(sqrt(sum(base_energy)), 0) AS moved
    FROM adapter_steps
    WHERE step = (SELECT max(step) FROM adapter_steps)
),
moved AS (
    SELECT
        coalesce(lora.moved, weights.moved) AS share,
        CASE WHEN lora.moved IS NULL THEN 'weights' ELSE 'adapted weights' END AS what
    FROM weights, lora
)
SELECT
    'run' AS where_kind,
    'run' AS where_name,
    1 AS first_step,
    last_look.step AS last_step,
    moved.share AS value,
    $min_moved AS threshold,
    1.0 - moved.share / $min_moved AS score,
    last_look.step AS steps,
    moved.what AS what
FROM moved, last_look
WHERE moved.share < $min_moved
