-- d may grow by growth_rate in a step, so from d0 to `wanted_d` it takes ln(wanted_d / d0) / ln(growth_rate) steps, more
-- where the estimate is slower. A limit of infinity takes none, a d0 above it less than none.
-- NULL: no plan, no row.
WITH plan AS (
    SELECT
        max(try_cast(value AS DOUBLE)) FILTER (WHERE key = 'optimizer.growth_rate') AS growth,
        max(try_cast(value AS DOUBLE)) FILTER (WHERE key = 'optimizer.d0') AS d0,
        max(try_cast(value AS DOUBLE)) FILTER (WHERE key = 'plan.steps') AS steps
    FROM config
),
climbs AS (
    SELECT *, ln($wanted_d / d0) / ln(growth) AS climb FROM plan
)
SELECT
    'run' AS where_kind,
    'run' AS where_name,
    NULL AS first_step,
    NULL AS last_step,
    climb / steps AS value,
    $max_share AS threshold,
    least(1.0, climb / steps) AS score,
    growth,
    d0,
    climb,
    steps
FROM climbs
WHERE climb / steps > $max_share
