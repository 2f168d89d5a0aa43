-- Runs of steps after each resume in which the lr, as a share of its base, rises from every step to the next, outside of
-- the schedule's warmup: a decaying schedule that was carried past its end comes up again.
-- A new schedule (restart) or a longer one (extend) jumps up in a single step, which is no rise here.
-- Left out is what has another cause: a position that is neither the saved one nor the one asked for (SCH008), and a
-- step counter that was lost (RES008).
-- NaN and NULL: shares that are not finite and steps whose place in the schedule is not known are left out.
WITH resumes AS (
    SELECT
        segment,
        min(step) AS start,
        max(try_cast(loaded AS DOUBLE)) FILTER (WHERE item = 'scheduler' AND key = 'warmup_steps') AS warmup_steps,
        max(try_cast(loaded AS DOUBLE)) FILTER (WHERE item = 'scheduler' AND key = 'steps') AS length
    FROM continuity
    GROUP BY segment
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
-- `scheduler_step` is where the step left the schedule; its lr was that of the place before.
rates AS (
    SELECT
        groups.segment,
        resumes.start,
        resumes.length,
        coalesce(groups.name, 'group ' || groups."group") AS name,
        groups.step,
        max(scheduler_step) AS position,
        max(lr) AS lr,
        max(base_lr) AS base_lr,
        max(lr / base_lr) AS share
    FROM groups JOIN resumes ON groups.segment = resumes.segment AND groups.step > resumes.start
    WHERE groups.segment NOT IN (SELECT segment FROM elsewhere)
        AND base_lr > 0 AND isfinite(lr) AND isfinite(base_lr)
        AND scheduler_step > coalesce(resumes.warmup_steps, 0)
    GROUP BY ALL
),
compared AS (
    SELECT *, share > lag(share) OVER one AS rises FROM rates WINDOW one AS (PARTITION BY segment, name ORDER BY step)
),
-- A step that does not rise begins a new run of steps, and is what the next ones rise from.
numbered AS (
    SELECT *, count(*) FILTER (WHERE rises IS NOT TRUE) OVER (PARTITION BY segment, name ORDER BY step) AS number
    FROM compared
),
climbs AS (
    SELECT
        segment,
        start,
        any_value(length) AS length,
        name,
        min(step) AS first_step,
        max(step) AS last_step,
        count(*) - 1 AS steps,
        arg_min(lr, step) AS from_lr,
        arg_max(lr, step) AS to_lr,
        arg_min(position, step) - 1 AS position,
        max(share) - min(share) AS rise
    FROM numbered
    GROUP BY segment, start, name, number
)
SELECT
    'group' AS where_kind,
    name AS where_name,
    first_step,
    last_step,
    rise AS value,
    $min_rise AS threshold,
    least(1.0, rise) AS score,
    start,
    steps,
    from_lr,
    to_lr,
    position,
    length
FROM climbs
WHERE rise > $min_rise AND steps >= $min_steps
