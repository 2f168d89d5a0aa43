-- The steps at the end of each resumed part that were made with less than a thousandth of the base lr, and those that
-- are planned to follow: a schedule that has come to its end before the run. Dead steps that are followed by others
-- (the beginning of a warmup, the valley of a cosine) are not counted.
-- Left out is what has another cause: a position that is neither the saved one nor the one asked for (SCH008), and a
-- step counter that was lost (RES008).
-- NaN and NULL: an lr that is not finite counts as alive (SYM004 is its symptom), no base lr gives no row.
WITH resumes AS (
    SELECT segment, min(step) AS start FROM events WHERE kind = 'resume' GROUP BY segment
),
elsewhere AS (
    SELECT segment FROM continuity
    WHERE (
            item = 'scheduler' AND key = 'last_epoch'
            AND try_cast(loaded AS DOUBLE) <> try_cast(saved AS DOUBLE)
            AND try_cast(loaded AS DOUBLE) <> try_cast(asked AS DOUBLE)
        )
        OR (item = 'counter' AND key = 'step' AND try_cast(loaded AS DOUBLE) <> try_cast(saved AS DOUBLE))
),
plan AS (
    SELECT max(try_cast(value AS DOUBLE)) AS steps FROM config WHERE key = 'plan.steps'
),
rates AS (
    SELECT
        groups.segment,
        resumes.start,
        coalesce(groups.name, 'group ' || groups."group") AS name,
        groups.step,
        max(base_lr) AS base_lr,
        max(lr) AS lr,
        bool_and(base_lr > 0 AND isfinite(lr) AND lr < $max_lr * base_lr) AS dead
    FROM groups JOIN resumes ON groups.segment = resumes.segment AND groups.step > resumes.start
    WHERE groups.segment NOT IN (SELECT segment FROM elsewhere) AND base_lr IS NOT NULL
    GROUP BY ALL
),
parts AS (
    SELECT
        segment,
        start,
        name,
        max(step) AS last_step,
        coalesce(max(step) FILTER (WHERE dead IS NOT TRUE), start) AS last_alive,
        arg_max(base_lr, step) AS base_lr,
        arg_max(lr, step) AS lr
    FROM rates
    GROUP BY segment, start, name
),
-- The last part may have been stopped early: what it had planned would have gone on at the same lr.
planned AS (
    SELECT
        parts.*,
        CASE WHEN segment = (SELECT max(segment) FROM resumes)
            THEN greatest(last_step, coalesce(plan.steps, 0)) ELSE last_step END AS end_step
    FROM parts, plan
)
SELECT
    'group' AS where_kind,
    name AS where_name,
    last_alive + 1 AS first_step,
    last_step,
    (end_step - last_alive) / end_step AS value,
    $max_share AS threshold,
    (end_step - last_alive) / (end_step - start) AS score,
    start,
    end_step - last_alive AS left_steps,
    lr,
    base_lr
FROM planned
WHERE (end_step - last_alive) > $max_share * end_step AND last_step - last_alive >= $min_steps
