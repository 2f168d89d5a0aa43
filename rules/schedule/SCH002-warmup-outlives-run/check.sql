-- When the lr that steps really used was highest; one that peaks late while it rises was warming up.
-- A constant lr has its peak at the first step; a cosine has it where its warmup ends.
-- NULL: no lr, no row.
WITH peaks AS (
    SELECT
        "group",
        any_value(name) AS name,
        max(lr) AS peak_lr,
        arg_min(step, (-lr, step)) AS peak_step,
        max(base_lr) AS base_lr,
        min(step) AS first_step,
        max(step) AS steps
    FROM groups
    WHERE lr IS NOT NULL
    GROUP BY "group"
)
SELECT
    'group' AS where_kind,
    name AS where_name,
    first_step,
    steps AS last_step,
    peak_step / steps AS value,
    $max_share AS threshold,
    -- What the warmup took: a linear rise to a share of the base lr gives half of that share on average.
    1.0 - least(1.0, peak_lr / base_lr) / 2 AS score,
    peak_lr / base_lr AS reached,
    peak_step,
    steps,
    base_lr
FROM peaks
WHERE peak_step > $max_share * steps AND base_lr > 0
