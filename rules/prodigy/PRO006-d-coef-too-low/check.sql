-- The factor that the estimate was multiplied by, read off the estimate itself: d_hat · denominator / numerator; and
-- when d was half way, in orders of magnitude, from d0 to where it ended.
-- A low factor alone is no hit: with d half way in good time it is the smaller step that was asked for.
-- NaN: an estimate that is not finite is left out. NULL: no d_hat before the first step with a gradient. A numerator of
-- 0, as at the first step, says nothing of the factor.
WITH factors AS (
    SELECT "group", median(d_hat * d_denom / d_numerator) AS factor
    FROM groups
    WHERE isfinite(d_hat) AND isfinite(d_denom) AND d_denom > 0 AND d_numerator <> 0 AND isfinite(d_numerator)
    GROUP BY "group"
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
FROM d_searches JOIN factors USING ("group")
WHERE factor < $min_coef AND late_share > $max_late_share
