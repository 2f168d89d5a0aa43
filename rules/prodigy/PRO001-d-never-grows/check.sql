-- d at the end of the run against d0, in each group, where the weights hardly moved either: a d0 that is right from the
-- start has no need to grow.
-- NaN: `d / d0 < x` is false for NaN, and a NaN d is SYM004's business. NULL: the optimizer has no d, no row.
WITH ends AS (
    SELECT
        "group",
        any_value(name) AS name,
        arg_max(d, step) AS d,
        arg_max(d0, step) AS d0,
        max(effective_lr) AS effective_lr,
        min(step) AS first_step,
        max(step) AS last_step
    FROM groups
    WHERE d IS NOT NULL
    GROUP BY "group"
),
travelled AS (
    SELECT sqrt(sum(distance_energy)) / nullif(sqrt(sum(weight_energy)), 0) AS share
    FROM tensor_steps
    WHERE step = (SELECT max(step) FROM tensor_steps WHERE distance_energy IS NOT NULL)
)
SELECT
    'group' AS where_kind,
    name AS where_name,
    first_step,
    last_step,
    d / d0 AS value,
    $min_growth AS threshold,
    -- 1 where d stayed, 0 at the threshold.
    least(1.0, greatest(0.0, coalesce(1.0 - (d / d0 - 1) / nullif($min_growth - 1, 0), 1.0))) AS score,
    last_step AS steps,
    d0,
    effective_lr,
    travelled.share AS moved
FROM ends, travelled
-- Weights that went non-finite have not learned either: NaN sorts above every number, so they are asked for by name.
WHERE d / d0 < $min_growth AND (travelled.share < $max_moved OR NOT isfinite(travelled.share))
