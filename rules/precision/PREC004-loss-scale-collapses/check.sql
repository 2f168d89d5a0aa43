-- Steps that a GradScaler skipped beyond those that finding a scale can take: in each segment `search`, since a scaler
-- that was not restored begins again at 65536, and one for each 2000 steps, after which a scale is raised to see
-- whether it fits.
-- NULL: a run without a GradScaler has skipped = false and loss_scale = 1 everywhere, and gives no row. NaN: none here.
WITH taken AS (
    SELECT segment, step, bool_or(skipped) AS skipped, max(loss_scale) AS loss_scale
    FROM steps
    GROUP BY segment, step
),
per_segment AS (
    SELECT
        count(*) AS steps,
        count(*) FILTER (WHERE skipped) AS lost,
        min(step) FILTER (WHERE skipped) AS first_step,
        max(step) FILTER (WHERE skipped) AS last_step,
        max(loss_scale) AS first_scale,
        arg_max(loss_scale, step) AS last_scale
    FROM taken
    GROUP BY segment
),
run AS (
    SELECT
        min(first_step) AS first_step,
        max(last_step) AS last_step,
        sum(steps) AS steps,
        sum(lost) AS lost,
        sum(greatest(0, lost - $search - steps // 2000)) AS excess,
        max(first_scale) AS first_scale,
        min(last_scale) AS last_scale
    FROM per_segment
)
SELECT
    'run' AS where_kind,
    'run' AS where_name,
    first_step,
    last_step,
    excess / steps AS value,
    $max_share AS threshold,
    lost / steps AS score,
    lost,
    steps,
    first_scale,
    last_scale
FROM run
WHERE excess / steps > $max_share
