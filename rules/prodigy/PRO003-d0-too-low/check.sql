-- When d was half way, in orders of magnitude, from d0 to where it ended, in groups whose lr was as it should be.
-- The score says how much of the trouble d0 accounts for: nearly all below the usual d0; at the usual one it is a help
-- rather than the reason (weights that lose updates, a run too short), so it stays below a half.
-- NaN: a d that is not finite is left out by name (`NaN >= NaN` is true in DuckDB). NULL: no d, no row.
WITH per_group AS (
    SELECT
        "group",
        any_value(name) AS name,
        max(lr) AS peak_lr,
        max(d) AS d_end,  -- it never falls by itself; one that a resume reset is PRO004
        arg_max(d0, step) AS d0,
        min(step) AS first_step,
        max(step) AS last_step
    FROM groups
    WHERE isfinite(d)
    GROUP BY "group"
),
half_way AS (
    SELECT g."group", min(g.step) AS step
    FROM groups AS g JOIN per_group AS p USING ("group")
    WHERE ln(g.d) >= (ln(p.d0) + ln(p.d_end)) / 2
    GROUP BY g."group"
),
late AS (
    SELECT
        p.*,
        CASE WHEN d_end < 1.5 * d0 THEN 1.0 ELSE h.step / p.last_step END AS late_share
    FROM per_group AS p JOIN half_way AS h USING ("group")
)
SELECT
    'group' AS where_kind,
    name AS where_name,
    first_step,
    last_step,
    d0 AS value,
    $usual_d0 AS threshold,
    CASE WHEN d0 < 0.5 * $usual_d0 THEN 0.95 ELSE 0.4 END AS score,
    CASE
        WHEN late_share = 1.0 THEN format('did not leave it in {} steps', last_step)
        ELSE format('was half way to its height only at step {} of {}', round(late_share * last_step)::INT, last_step)
    END AS progress,
    late_share,
    d_end
FROM late
WHERE peak_lr >= $min_lr
    AND late_share > $max_late_share
    -- From the usual d0, d may well rise all through a healthy run: only one that did not grow is a hit there.
    AND (d0 < 0.5 * $usual_d0 OR (late_share = 1.0 AND d0 <= 5 * $usual_d0))
