-- The base learning rate that the configuration asks for beside the one of the steps after each resume, by group. Where
-- there is no schedule that has a base, the group's lr itself, if the first step and the last one used it.
-- NaN and NULL: numbers come as JSON text, and what is no number (NaN among them) is NULL, which gives no row.
WITH asked AS (
    SELECT
        segment,
        param AS name,
        min(step) AS start,
        max(try_cast(asked AS DOUBLE)) FILTER (WHERE item = 'scheduler') AS base_asked,
        max(try_cast(loaded AS DOUBLE)) FILTER (WHERE item = 'scheduler') AS base_loaded,
        max(try_cast(saved AS DOUBLE)) FILTER (WHERE item = 'scheduler') AS base_saved,
        max(try_cast(asked AS DOUBLE)) FILTER (WHERE item = 'group') AS lr_asked,
        max(try_cast(loaded AS DOUBLE)) FILTER (WHERE item = 'group') AS lr_loaded,
        max(try_cast(saved AS DOUBLE)) FILTER (WHERE item = 'group') AS lr_saved
    FROM continuity
    WHERE (item = 'scheduler' AND key = 'base_lr') OR (item = 'group' AND key = 'lr')
    GROUP BY segment, param
),
wanted AS (
    SELECT
        segment,
        name,
        start,
        base_asked IS NOT NULL AS has_base,
        coalesce(base_asked, lr_asked) AS asked_lr,
        CASE WHEN base_asked IS NOT NULL THEN base_loaded ELSE lr_loaded END AS loaded_lr,
        CASE WHEN base_asked IS NOT NULL THEN base_saved ELSE lr_saved END AS saved_lr
    FROM asked
),
used AS (
    SELECT
        wanted.segment,
        wanted.name,
        CASE WHEN has_base THEN base_lr ELSE lr END AS lr,
        groups.step
    FROM wanted JOIN groups
        ON groups.segment = wanted.segment
        AND coalesce(groups.name, 'group ' || groups."group") = wanted.name
        AND groups.step > wanted.start
    WHERE isfinite(CASE WHEN has_base THEN base_lr ELSE lr END)
),
after AS (
    SELECT
        segment,
        name,
        count(DISTINCT step) AS steps,
        max(step) AS last_step,
        arg_min(lr, step) AS first_lr,
        arg_max(lr, step) AS last_lr
    FROM used
    GROUP BY segment, name
)
SELECT
    'group' AS where_kind,
    name AS where_name,
    start AS first_step,
    last_step,
    abs(first_lr - asked_lr) / greatest(first_lr, asked_lr) AS value,
    $max_error AS threshold,
    least(1.0, abs(first_lr - asked_lr) / greatest(first_lr, asked_lr)) AS score,
    asked_lr,
    last_lr AS lr_in_effect,
    CASE WHEN abs(last_lr - saved_lr) <= $max_error * greatest(last_lr, saved_lr)
        THEN 'that of the checkpoint' ELSE 'not that of the checkpoint either' END AS origin,
    steps
FROM wanted JOIN after USING (segment, name)
WHERE abs(loaded_lr - asked_lr) > $max_error * greatest(loaded_lr, asked_lr)
    AND abs(first_lr - asked_lr) > $max_error * greatest(first_lr, asked_lr)
    AND abs(last_lr - asked_lr) > $max_error * greatest(last_lr, asked_lr)
