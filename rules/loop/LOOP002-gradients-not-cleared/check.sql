-- Steps whose first backward pass found a gradient of an earlier step, of all steps but the first. What the optimizer
-- does not hold it cannot clear either: that is another fault (LOOP003, RES011). NaN sorts above every number: a
-- gradient that went non-finite and stays counts as left over. NULL: not measured, no row.
WITH leftovers AS (
    SELECT
        step,
        grad_norm_before_backward > $max_leftover * lag(grad_norm) OVER (PARTITION BY rank ORDER BY step) AS is_left,
        grad_norm_before_backward / nullif(lag(grad_norm) OVER (PARTITION BY rank ORDER BY step), 0) AS share
    FROM steps
    WHERE grad_norm_before_backward IS NOT NULL
),
run AS (
    SELECT
        count(*) AS steps,
        count(*) FILTER (WHERE is_left) AS left_over,
        min(step) FILTER (WHERE is_left) AS first_step,
        max(step) FILTER (WHERE is_left) AS last_step,
        median(share) FILTER (WHERE is_left AND isfinite(share)) AS typical
    FROM leftovers
    WHERE is_left IS NOT NULL
)
SELECT
    'run' AS where_kind,
    'run' AS where_name,
    first_step,
    last_step,
    left_over / steps AS value,
    $max_share AS threshold,
    left_over / steps AS score,
    left_over,
    steps AS looked,
    coalesce(typical, 1) AS typical
FROM run
WHERE left_over / steps > $max_share
    AND NOT EXISTS (SELECT 1 FROM params WHERE NOT in_optimizer OR NOT is_model_object)
