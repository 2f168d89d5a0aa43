-- The mean of the rate that steps were made with, since it was highest (so its own warmup does not count), as a share
-- of lr_max, which weighs the steps in the average and never falls.
-- NaN: steps whose rate is not finite are left out. NULL: other optimizers have no scheduled_lr and give no row.
WITH track AS (
    SELECT "group", step, any_value(name) AS name, max(scheduled_lr) AS rate, max(lr_max) AS highest
    FROM groups
    WHERE isfinite(scheduled_lr) AND lr_max > 0
    GROUP BY "group", step
),
peaks AS (
    SELECT "group", arg_max(step, rate) AS step
    FROM track
    GROUP BY "group"
),
since AS (
    SELECT
        any_value(t.name) AS name,
        min(t.step) AS first_step,
        max(t.step) AS last_step,
        avg(t.rate / t.highest) AS mean_rate,
        arg_max(t.rate / t.highest, t.step) AS last_rate
    FROM track AS t JOIN peaks AS p USING ("group")
    WHERE t.step >= p.step
    GROUP BY t."group"
    HAVING count(*) >= 20
)
SELECT
    'group' AS where_kind,
    name AS where_name,
    first_step,
    last_step,
    mean_rate AS value,
    $min_mean AS threshold,
    1.0 - mean_rate AS score,
    last_rate
FROM since
WHERE mean_rate < $min_mean
