-- The last evaluation before each resume beside the highest one within `window` steps after it (or the next one, where
-- evaluations are further apart), of the weights as trained. Beside it the same of every earlier evaluation: how much this
-- loss rises on its own.
-- A resume that was asked for a higher learning rate is left out where it got one: that is what raises the loss then.
-- NaN: non-finite losses are left out (SYM004 is their symptom). NULL: no evaluation on one of the sides, no row.
WITH counted AS (
    SELECT segment, start FROM resumes WHERE NOT superseded
),
-- The highest learning rate in effect soon after the resume, over the last one before it, of the group that rose most.
rates AS (
    SELECT segment, max(now / before) AS ratio
    FROM (
        SELECT
            counted.segment,
            "group",
            max(effective_lr) FILTER (WHERE groups.segment = counted.segment AND step <= start + $window) AS now,
            arg_max(effective_lr, step) FILTER (WHERE groups.segment < counted.segment AND step <= start) AS before
        FROM counted JOIN groups ON groups.segment <= counted.segment
        GROUP BY counted.segment, start, "group"
    )
    WHERE before > 0
    GROUP BY segment
),
asked AS (
    SELECT DISTINCT segment
    FROM events
    WHERE kind = 'resume' AND json_valid(detail)
        AND regexp_matches(CASE WHEN json_valid(detail) THEN detail ->> 'changed' END, '"(optimizer\.lr|scheduler\.|train\.)')
),
points AS (
    SELECT segment, step, avg(loss) AS loss FROM evals WHERE weights = 'raw' AND isfinite(loss) GROUP BY segment, step
),
-- Where to begin counting, and the loss there: every evaluation, and every resume.
begins AS (
    SELECT segment, step AS start, step, loss, false AS resumed FROM points
    UNION ALL
    SELECT counted.segment, start, max(step), arg_max(loss, step), true
    FROM counted JOIN points ON points.segment < counted.segment AND step <= start
    GROUP BY counted.segment, start
),
rises AS (
    SELECT
        begins.segment,
        start,
        resumed,
        any_value(begins.step) AS step_before,
        any_value(begins.loss) AS loss_before,
        arg_max(points.step, points.loss) AS step_after,
        max(points.loss) AS loss_after,
        max(points.loss) / any_value(begins.loss) - 1 AS rise
    FROM begins JOIN points ON points.segment = begins.segment AND points.step > start
    WHERE points.step <= greatest(
        start + $window,
        (SELECT min(next.step) FROM points AS next WHERE next.segment = begins.segment AND next.step > start)
    )
    GROUP BY begins.segment, start, resumed
),
compared AS (
    SELECT
        rises.*,
        (
            SELECT greatest(0, max(own.rise)) FROM rises AS own
            WHERE NOT own.resumed AND own.step_after <= rises.start
        ) AS usual
    FROM rises
    WHERE resumed
)
SELECT
    'resume' AS where_kind,
    'step ' || start AS where_name,
    start AS first_step,
    step_after AS last_step,
    rise AS value,
    greatest($min_rise, $times_usual * coalesce(usual, 0)) AS threshold,
    1.0 AS score,
    step_before,
    step_after,
    loss_before,
    loss_after,
    coalesce(usual, 0) AS usual
FROM compared LEFT JOIN rates USING (segment) LEFT JOIN asked USING (segment)
WHERE (asked.segment IS NOT NULL AND rates.ratio > 1.1) IS NOT TRUE
    AND rise > greatest($min_rise, $times_usual * coalesce(usual, 0))
