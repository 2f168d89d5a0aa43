-- d' = max(d, min(estimate, d · growth_rate)): where the limit decides, d grows by the same factor to the last digit,
-- step after step; an estimate never does. The share of steps at which it grew by its most frequent factor.
-- NaN: steps whose d is not finite are left out. NULL: no d, no row.
WITH track AS (
    SELECT "group", step, any_value(name) AS name, max(d) AS d, max(effective_lr) AS effective_lr
    FROM groups
    WHERE isfinite(d) AND d > 0
    GROUP BY "group", step
),
grown AS (
    SELECT *, round(d / lag(d) OVER (PARTITION BY "group" ORDER BY step), 9) AS growth
    FROM track
),
factors AS (
    SELECT "group", growth, count(*) AS steps, min(step) AS first_step, max(step) AS last_step
    FROM grown
    WHERE growth > 1
    GROUP BY "group", growth
),
per_group AS (
    SELECT "group", any_value(name) AS name, count(*) AS steps, arg_max(effective_lr, step) AS effective_lr
    FROM track
    GROUP BY "group"
)
SELECT
    'group' AS where_kind,
    p.name AS where_name,
    f.first_step,
    f.last_step,
    f.steps / p.steps AS value,
    $max_share AS threshold,
    f.steps / p.steps AS score,
    f.growth,
    p.effective_lr
FROM factors AS f JOIN per_group AS p USING ("group")
WHERE f.steps / p.steps > $max_share
