-- How many steps the average holds: the inverse of what the last step weighs in it, as a share of all steps so far; and
-- a held-out loss that did not come down, since at a low rate an average is not needed.
-- NaN: a sum that is not finite is left out; a last loss that is not finite counts as not having come down. NULL: the
-- first step of a segment has no step before it. A step that weighs nothing (lr 0) says nothing of the average.
WITH track AS (
    SELECT "group", segment, step, any_value(name) AS name, max(weight_sum) AS total, max(k) AS k
    FROM groups
    WHERE isfinite(weight_sum)
    GROUP BY "group", segment, step
),
weighed AS (
    SELECT *, total - lag(total) OVER (PARTITION BY "group", segment ORDER BY step) AS weight
    FROM track
),
per_group AS (
    SELECT
        any_value(name) AS name,
        min(step) AS first_step,
        max(step) AS last_step,
        arg_max(total / weight, step) AS horizon,
        arg_max(k, step) AS steps
    FROM weighed
    WHERE weight > 0
    GROUP BY "group"
),
curve AS (
    SELECT arg_min(loss, step) AS first_loss, arg_max(loss, step) AS last_loss
    FROM evals
    WHERE weights = 'raw' AND loss IS NOT NULL
)
SELECT
    'group' AS where_kind,
    name AS where_name,
    first_step,
    last_step,
    horizon / steps AS value,
    $min_share AS threshold,
    1.0 - horizon / steps AS score,
    horizon,
    steps,
    first_loss,
    last_loss
FROM per_group, curve
WHERE horizon / steps < $min_share
    AND (NOT isfinite(last_loss) OR (first_loss - last_loss) / first_loss
        < CASE WHEN EXISTS (SELECT 1 FROM adapter_steps) THEN 0 ELSE $min_fall END)
