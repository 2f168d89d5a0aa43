-- The highest lr that a step used, and when d was half way, in orders of magnitude, from d0 to where it ended.
-- A low lr alone is no hit: with d half way in good time the search was quick enough.
-- NaN: a d that is not finite is left out. NULL: no d, no row.
SELECT
    'group' AS where_kind,
    name AS where_name,
    first_step,
    last_step,
    peak_lr AS value,
    $min_lr AS threshold,
    greatest(0.0, 1.0 - peak_lr) AS score,
    late_share,
    CASE
        WHEN late_share = 1.0 THEN 'did not grow'
        ELSE format('was half way to its final value only after {:.0f} % of the run', 100 * late_share)
    END AS progress,
    d0,
    d_end
FROM d_searches
WHERE peak_lr < $min_lr AND late_share > $max_late_share
