-- Step counters that are lower after the resume than when they were saved, while the moments beside them were kept, by
-- what the bias correction makes of it: how many times too large or too small the first update and the tenth are, from
-- the group's betas. Counters of tensors are Adam's `step` (also bitsandbytes'), those of groups are `k`. Schedule-Free
-- corrects the second moment only; Prodigy (a group with d) corrects nothing unless use_bias_correction is set.
-- NULL: a counter that is no number, or betas that are not known, give no row. NaN cannot come about: betas are below 1.
WITH counted AS (
    SELECT segment, start FROM resumes WHERE NOT superseded
),
settings AS (
    SELECT
        "group",
        any_value(name) AS name,
        try_cast(arg_max(betas, step) ->> 0 AS DOUBLE) AS beta1,
        try_cast(arg_max(betas, step) ->> 1 AS DOUBLE) AS beta2,
        bool_or(d IS NOT NULL) AS estimates,
        bool_or(train_mode IS NOT NULL) AS schedule_free
    FROM groups
    GROUP BY "group"
),
bias_correction AS (
    SELECT count(*) > 0 AS is_on FROM config WHERE key = 'optimizer.use_bias_correction' AND value = 'true'
),
-- Without its moments a counter has to begin again, and with those of another moment (RES013) it is theirs; and where Prodigy lost its estimate, that is the fault (PRO004).
moments AS (
    SELECT segment, param FROM continuity
    WHERE item = 'optimizer' AND key <> 'step' AND status IN ('missing', 'reset', 'changed')
    UNION ALL
    SELECT segment, param FROM continuity WHERE item = 'group' AND key = 'd' AND status <> 'match'
),
counters AS (
    SELECT
        counted.segment,
        start,
        try_cast(saved AS DOUBLE) AS saved,
        try_cast(loaded AS DOUBLE) AS loaded,
        CASE WHEN schedule_free THEN 0 ELSE beta1 END AS beta1,
        beta2
    FROM continuity
    JOIN counted USING (segment)
    LEFT JOIN params ON item = 'optimizer' AND params.param = continuity.param
    JOIN settings ON (item = 'optimizer' AND settings."group" = coalesce(params."group", 0))
        OR (item = 'group' AND settings.name = continuity.param)
    CROSS JOIN bias_correction
    WHERE status IN ('reset', 'changed')
        AND ((item = 'optimizer' AND key = 'step' AND NOT estimates) OR (item = 'group' AND key = 'k'))
        AND (NOT estimates OR is_on)
        AND NOT EXISTS (
            SELECT 1 FROM moments
            WHERE moments.segment = continuity.segment AND (moments.param = continuity.param OR item = 'group')
        )
),
corrected AS (
    SELECT
        *,
        (1 - beta1 ^ (saved + 1)) / (1 - beta1 ^ (loaded + 1))
        * sqrt((1 - beta2 ^ (loaded + 1)) / (1 - beta2 ^ (saved + 1))) AS first_factor,
        (1 - beta1 ^ (saved + 10)) / (1 - beta1 ^ (loaded + 10))
        * sqrt((1 - beta2 ^ (loaded + 10)) / (1 - beta2 ^ (saved + 10))) AS tenth_factor
    FROM counters
    WHERE saved > loaded AND loaded >= 0
),
worst AS (
    SELECT
        segment,
        start,
        count(*) AS counters,
        max(saved) AS saved,
        arg_max(loaded, saved) AS loaded,
        arg_max(first_factor, saved) AS first_factor,
        arg_max(tenth_factor, saved) AS tenth_factor
    FROM corrected
    GROUP BY segment, start
)
SELECT
    'resume' AS where_kind,
    'step ' || start AS where_name,
    start AS first_step,
    greatest(first_factor, 1 / first_factor, tenth_factor, 1 / tenth_factor) AS value,
    $max_factor AS threshold,
    least(1.0, ln(greatest(first_factor, 1 / first_factor, tenth_factor, 1 / tenth_factor)) / ln(2)) AS score,
    counters,
    saved,
    loaded,
    first_factor,
    tenth_factor
FROM worst
WHERE greatest(first_factor, 1 / first_factor, tenth_factor, 1 / tenth_factor) > $max_factor
