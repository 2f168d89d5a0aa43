-- What passes between the end of a step and the end of the next, beyond the latter's own seconds; and which events fell
-- into it. A resume begins a new clock, so gaps are of one segment.
-- NaN, NULL and clocks that went backwards are left out.
WITH ends AS (
    SELECT
        segment,
        step,
        time,
        seconds,
        lag(time) OVER (PARTITION BY segment ORDER BY step) AS time_before
    FROM steps
    WHERE rank = 0 AND isfinite(time) AND isfinite(seconds)
),
gaps AS (
    SELECT *, time - time_before AS passed, greatest(0, time - time_before - seconds) AS lost
    FROM ends
    WHERE time >= time_before
),
kinds AS (
    SELECT e.kind, sum(lost) AS lost, count(*) AS times
    FROM (
        SELECT DISTINCT gaps.segment, gaps.step, events.kind, gaps.lost
        FROM gaps JOIN events ON events.segment = gaps.segment AND events.time > time_before AND events.time <= gaps.time
        WHERE events.kind IN ('eval', 'sample', 'save')
    ) AS e
    GROUP BY e.kind
),
most AS (
    SELECT arg_max(kind, lost) AS kind, arg_max(times, lost) AS times FROM kinds
),
run AS (
    SELECT min(step) AS first_step, max(step) AS last_step, sum(lost) AS lost, sum(passed) AS total FROM gaps
)
SELECT
    'run' AS where_kind,
    'run' AS where_name,
    first_step,
    last_step,
    lost / total AS value,
    $max_share AS threshold,
    least(1.0, lost / total) AS score,
    lost,
    total,
    CASE kind
        WHEN 'eval' THEN 'evaluations'
        WHEN 'sample' THEN 'sample images'
        WHEN 'save' THEN 'saving checkpoints'
        ELSE 'something that the log does not know'
    END AS occupation,
    coalesce(times, 0) AS times
FROM run, most
WHERE lost / nullif(total, 0) > $max_share
