-- Resumes at which Schedule-Free's z, second moments or counters were not those that were saved, and what came of it: the
-- largest look within `window` steps against the median of the looks before, a higher lr taken out; and the highest
-- held-out loss there against the last one before. In a run that goes on from another's checkpoint the looks before are
-- in the other's log: those after the window take their place.
-- An evaluation within `soon` steps that shows no rise acquits large updates: they did no harm.
-- NaN: non-finite norms and losses are left out (SYM004 is their symptom), and a counter that is no number has not fallen
-- back. NULL: without looks or evaluations on one side that comparison gives no hit.
WITH lost AS (
    SELECT
        segment,
        step AS start,
        count(DISTINCT param) FILTER (WHERE item = 'optimizer' AND key = 'z') AS averages,
        count(DISTINCT param) FILTER (WHERE item = 'optimizer' AND key = 'exp_avg_sq') AS moments,
        count(DISTINCT key) FILTER (WHERE item = 'group') AS counters
    FROM continuity
    WHERE (
        (item = 'optimizer' AND key IN ('z', 'exp_avg_sq') AND status IN ('missing', 'reset'))
        OR (
            item = 'group' AND key IN ('k', 'weight_sum', 'lr_max')
            AND (status = 'missing' OR try_cast(loaded AS DOUBLE) < try_cast(saved AS DOUBLE))
        )
    )
    AND segment NOT IN (SELECT segment FROM resumes WHERE superseded)
    GROUP BY segment, step
),
looks AS (
    SELECT segment, step, sqrt(step_energy) AS size FROM tensor_steps WHERE step_energy IS NOT NULL
),
usual AS (
    SELECT
        lost.segment,
        CASE
            WHEN count(*) FILTER (WHERE looks.step <= start) >= 3
            THEN median(size) FILTER (WHERE looks.step <= start)
            WHEN count(*) FILTER (WHERE looks.step > start) >= 3
            THEN median(size) FILTER (WHERE looks.step > start)
        END AS size
    FROM lost JOIN looks
        ON (looks.segment < lost.segment AND looks.step > start - 50 AND looks.step <= start)
        OR (looks.segment = lost.segment AND looks.step > start + $window AND looks.step <= start + 100)
    GROUP BY lost.segment
),
rates AS (
    SELECT
        lost.segment,
        greatest(1, coalesce(
            max(lr) FILTER (WHERE groups.segment = lost.segment AND groups.step <= start + $window)
            / nullif(max(lr) FILTER (WHERE groups.segment < lost.segment AND groups.step > start - 50), 0), 1
        )) AS ratio
    FROM lost JOIN groups ON groups.segment <= lost.segment AND isfinite(lr)
    GROUP BY lost.segment
),
jumps AS (
    SELECT
        lost.segment,
        max(looks.size) AS update_after,
        any_value(usual.size) AS update_before,
        max(looks.size) / nullif(any_value(usual.size), 0) / coalesce(any_value(rates.ratio), 1) AS jump,
        arg_max(looks.step, looks.size) AS jump_step
    FROM lost
    JOIN usual ON usual.segment = lost.segment
    JOIN looks ON looks.segment = lost.segment AND looks.step > start AND looks.step <= start + $window
    LEFT JOIN rates ON rates.segment = lost.segment
    GROUP BY lost.segment
),
losses AS (
    SELECT
        lost.segment,
        arg_max(loss, evals.step) FILTER (WHERE evals.step <= start) AS loss_before,
        max(loss) FILTER (WHERE evals.step > start) AS loss_after,
        coalesce(bool_or(evals.step > start AND evals.step <= start + $soon), false) AS soon
    FROM lost JOIN evals
        ON weights = 'raw' AND isfinite(loss)
        AND (evals.step <= start OR (evals.segment = lost.segment AND evals.step <= start + $window))
    GROUP BY lost.segment
)
SELECT
    'resume' AS where_kind,
    'step ' || start AS where_name,
    start AS first_step,
    coalesce(jump_step, start) AS last_step,
    jump AS value,
    $min_jump AS threshold,
    1.0 AS score,
    averages,
    moments,
    counters,
    update_before,
    update_after,
    loss_before,
    loss_after
FROM lost
LEFT JOIN jumps USING (segment)
LEFT JOIN losses USING (segment)
WHERE loss_after / nullif(loss_before, 0) - 1 >= $min_rise
    OR (
        jump >= $min_jump
        AND NOT (coalesce(soon, false) AND loss_before IS NOT NULL)
    )
