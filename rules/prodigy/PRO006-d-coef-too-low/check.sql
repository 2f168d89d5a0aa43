-- The factor that the estimate was multiplied by, read off the estimate itself: d_hat · denominator / numerator; and
-- when d was half way, in orders of magnitude, from d0 to where it ended.
-- A low factor alone is no hit: with d half way in good time it is the smaller step that was asked for.
-- NaN: a d or an estimate that is not finite is left out. NULL: no d_hat before the first step with a gradient. A
-- numerator of 0, as at the first step, says nothing of the factor.
WITH per_group AS (
    SELECT
        "group",
        any_value(name) AS name,
        median(d_hat * d_denom / d_numerator) FILTER (
            WHERE isfinite(d_hat) AND isfinite(d_denom) AND d_denom > 0 AND d_numerator <> 0 AND isfinite(d_numerator)
        ) AS factor,
        arg_max(d, step) AS d_end,
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
        -- d that never left d0 is half way from the first step on, and as late as can be.
        CASE WHEN d_end < 1.5 * d0 THEN 1.0 ELSE h.step / p.last_step END AS late_share
    FROM per_group AS p JOIN half_way AS h USING ("group")
)
SELECT
    'group' AS where_kind,
    name AS where_name,
    first_step,
    last_step,
    factor AS value,
    $min_coef AS threshold,
    greatest(0.0, 1.0 - factor) AS score,
    CASE
        WHEN late_share = 1.0 THEN 'did not grow'
        ELSE format('was half way to its final value only after {:.0f} % of the run', 100 * late_share)
    END AS progress,
    late_share,
    d0,
    d_end
FROM late
WHERE factor < $min_coef AND late_share > $max_late_share
