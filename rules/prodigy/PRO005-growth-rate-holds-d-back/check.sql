-- d is the smaller one of d_max, what the estimate has reached, and of what growth_rate allows. The share of steps at
-- which d was less than half of d_max: nothing else keeps them apart.
-- NaN: steps whose d or d_max is not finite are left out. NULL: without d_max (D-Adaptation) there is no row.
WITH track AS (
    SELECT "group", step, any_value(name) AS name, max(d) AS d, max(d_max) AS d_max
    FROM groups
    WHERE isfinite(d) AND isfinite(d_max) AND d > 0
    GROUP BY "group", step
),
grown AS (
    SELECT *, d / lag(d) OVER (PARTITION BY "group" ORDER BY step) AS growth
    FROM track
),
per_group AS (
    SELECT
        any_value(name) AS name,
        min(step) FILTER (WHERE d * $held_back < d_max) AS first_step,
        max(step) FILTER (WHERE d * $held_back < d_max) AS last_step,
        count(*) FILTER (WHERE d * $held_back < d_max) / count(*) AS share,
        median(growth) FILTER (WHERE d * $held_back < d_max) AS growth,
        arg_max(d, step) AS d_end,
        arg_max(d_max, step) AS d_found
    FROM grown
    GROUP BY "group"
)
SELECT
    'group' AS where_kind,
    name AS where_name,
    first_step,
    last_step,
    share AS value,
    $max_share AS threshold,
    share AS score,
    growth,
    d_end,
    d_found
FROM per_group
WHERE share > $max_share
