-- When d was half way, in orders of magnitude, from d0 to where it ended, in groups whose lr was as it should be.
-- The score says how much of the trouble d0 accounts for: nearly all below the usual d0; at the usual one it is a help
-- rather than the reason (weights that lose updates, a run too short), so it stays below a half.
-- NaN: a d that is not finite is left out. NULL: no d, no row.
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
        ELSE format('was half way to its height only at step {} of {}', half_way_step, last_step)
    END AS progress,
    late_share,
    d_end
FROM d_searches
WHERE peak_lr >= $min_lr
    AND late_share > $max_late_share
    -- From the usual d0, d may well rise all through a healthy run: only one that did not grow is a hit there.
    AND (d0 < 0.5 * $usual_d0 OR (late_share = 1.0 AND d0 <= 5 * $usual_d0))
