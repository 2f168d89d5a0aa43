-- ‖θₜ₊₁ − θₜ‖ over all tensors: the largest look within `window` steps after each resume against the median of the last
-- five looks before it, less what the learning rate in effect (of the group that rose most) accounts for.
-- NaN: non-finite norms are left out (SYM004 is their symptom). NULL: fewer than three looks before, or none soon after,
-- no row.
WITH counted AS (
    SELECT segment, start FROM resumes WHERE NOT superseded
),
-- Sharded weights are not told apart.
looks AS (
    SELECT segment, step, sqrt(step_energy) AS norm FROM tensor_steps WHERE step_energy IS NOT NULL
),
rates AS (
    SELECT segment, step, "group", max(effective_lr) AS lr FROM groups WHERE isfinite(effective_lr) GROUP BY ALL
),
before AS (
    SELECT counted.segment, start, looks.step, norm
    FROM counted JOIN looks ON looks.segment < counted.segment AND looks.step <= start
    QUALIFY row_number() OVER (PARTITION BY counted.segment ORDER BY looks.step DESC) <= 5
),
usual AS (
    SELECT segment, start, median(norm) AS norm, min(step) AS first_look
    FROM before GROUP BY segment, start HAVING count(*) >= 3
),
usual_rates AS (
    SELECT usual.segment, rates."group", median(lr) AS lr
    FROM usual JOIN rates ON rates.segment < usual.segment AND rates.step BETWEEN first_look AND start
    GROUP BY usual.segment, rates."group"
),
after AS (
    SELECT
        usual.segment,
        start,
        looks.step,
        looks.norm AS update_after,
        usual.norm AS update_before,
        (
            SELECT max(rates.lr / usual_rates.lr)
            FROM rates JOIN usual_rates USING ("group")
            WHERE usual_rates.segment = usual.segment AND rates.segment = usual.segment
                AND rates.step = looks.step AND usual_rates.lr > 0
        ) AS lr_ratio
    FROM usual JOIN looks ON looks.segment = usual.segment
    WHERE looks.step > start AND looks.step <= start + $window AND usual.norm > 0
)
SELECT
    'resume' AS where_kind,
    'step ' || start AS where_name,
    start AS first_step,
    arg_max(step, update_after / update_before / greatest(1, lr_ratio)) AS last_step,
    max(update_after / update_before / greatest(1, lr_ratio)) AS value,
    $max_ratio AS threshold,
    1.0 AS score,
    arg_max(update_after, update_after / update_before / greatest(1, lr_ratio)) AS update_after,
    any_value(update_before) AS update_before,
    arg_max(lr_ratio, update_after / update_before / greatest(1, lr_ratio)) AS lr_ratio
FROM after
GROUP BY segment, start
HAVING max(update_after / update_before / greatest(1, lr_ratio)) > $max_ratio
