-- The probes' share of the time of all steps but the first ten. NaN and NULL, and steps that took no time, are left out.
WITH counted AS (
    SELECT * FROM steps
    WHERE step > (SELECT min(step) FROM steps) + 9
        AND isfinite(probe_seconds) AND isfinite(seconds) AND seconds > 0
),
run AS (
    SELECT
        min(step) AS first_step,
        max(step) AS last_step,
        sum(probe_seconds) / sum(seconds) AS share,
        avg(probe_seconds) * 1000 AS probe_ms,
        avg(seconds) * 1000 AS step_ms,
        sum(optimizer_seconds) FILTER (WHERE isfinite(optimizer_seconds)) / sum(seconds) AS optimizer_share
    FROM counted
)
SELECT
    'run' AS where_kind,
    'run' AS where_name,
    first_step,
    last_step,
    share AS value,
    $max_share AS threshold,
    least(1.0, share) AS score,
    probe_ms,
    step_ms,
    coalesce(optimizer_share, 0) AS optimizer_share
FROM run
WHERE share > $max_share
