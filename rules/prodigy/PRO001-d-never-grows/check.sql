-- d at the end of the run against d0, in each group.
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
)
SELECT
    'group' AS where_kind,
    name AS where_name,
    first_step,
    last_step,
    d / d0 AS value,
    $min_growth AS threshold,
    least(1.0, greatest(0.0, 1.0 - ln(d / d0) / ln($min_growth))) AS score,
    last_step AS steps,
    d0,
    effective_lr
FROM ends
WHERE d / d0 < $min_growth
