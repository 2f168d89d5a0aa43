-- Decoupled decay multiplies each weight by 1 - lr·d·weight_decay at each step: what is left of a weight that no
-- gradient holds is exp of minus the sum of those, group by group.
-- NaN: steps whose lr·d is not finite are left out. NULL: without weight decay the sum is 0 or there is no row.
WITH per_step AS (
    SELECT
        "group",
        step,
        any_value(name) AS name,
        max(effective_lr) AS effective_lr,
        max(weight_decay) AS weight_decay
    FROM groups
    WHERE isfinite(effective_lr) AND isfinite(weight_decay)
    GROUP BY "group", step
),
per_group AS (
    SELECT
        any_value(name) AS name,
        min(step) AS first_step,
        max(step) AS last_step,
        exp(-sum(effective_lr * weight_decay)) AS remains,
        max(weight_decay) AS decay,
        max(effective_lr) AS peak
    FROM per_step
    GROUP BY "group"
)
SELECT
    'group' AS where_kind,
    name AS where_name,
    first_step,
    last_step,
    remains AS value,
    $min_left AS threshold,
    1.0 - remains AS score,
    decay,
    peak
FROM per_group
WHERE remains < $min_left
