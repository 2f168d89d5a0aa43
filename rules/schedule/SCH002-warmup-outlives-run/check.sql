-- For how long the lr had been rising when it was highest: an lr that rises for long was warming up.
-- A constant lr and a cosine that a resume starts anew have not risen before their peak.
-- NULL: no lr, no row.
WITH changes AS (
    SELECT
        "group",
        name,
        step,
        lr,
        base_lr,
        coalesce(lr > lag(lr) OVER (PARTITION BY "group" ORDER BY step), false) AS rose
    FROM groups
    WHERE lr IS NOT NULL
),
peaks AS (
    SELECT
        "group",
        any_value(name) AS name,
        max(lr) AS peak_lr,
        arg_min(step, (-lr, step)) AS peak_step,
        max(base_lr) AS base_lr,
        min(step) AS first_step,
        max(step) AS steps
    FROM changes
    GROUP BY "group"
),
rises AS (
    SELECT peaks.*, peak_step - begin.step AS rise
    FROM peaks,
        LATERAL (
            SELECT max(step) AS step FROM changes
            WHERE changes."group" = peaks."group" AND NOT changes.rose AND changes.step <= peaks.peak_step
        ) AS begin
)
SELECT
    'group' AS where_kind,
    name AS where_name,
    first_step,
    steps AS last_step,
    rise / steps AS value,
    $max_share AS threshold,
    -- What the warmup took: a linear rise to a share of the base lr gives half of that share on average.
    1.0 - least(1.0, peak_lr / base_lr) / 2 AS score,
    peak_lr / base_lr AS reached,
    peak_step,
    steps,
    base_lr
FROM rises
WHERE rise > $max_share * steps AND base_lr > 0
