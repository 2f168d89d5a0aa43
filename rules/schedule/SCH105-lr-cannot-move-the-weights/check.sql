-- A step of Adam or Lion moves an element by lr or little more, so lr × steps is as far as one can come.
-- A schedule and a warmup take more off. NULL: no plan, no row.
WITH plan AS (
    SELECT
        max(try_cast(value AS DOUBLE)) FILTER (WHERE key = 'optimizer.lr') AS lr,
        max(try_cast(value AS DOUBLE)) FILTER (WHERE key = 'plan.steps') AS steps
    FROM config
)
SELECT
    'run' AS where_kind,
    'run' AS where_name,
    NULL AS first_step,
    NULL AS last_step,
    lr * steps AS value,
    $min_reach AS threshold,
    1.0 - lr * steps / $min_reach AS score,
    lr,
    steps,
    -- As many tenfolds as bring the reach to twenty times the least, or 1e-5, the least that the report recommends.
    CASE WHEN lr = 0 THEN 1e-5
        ELSE greatest(1e-5, lr * power(10, ceil(log10(20 * $min_reach / (lr * steps))))) END AS higher_lr
FROM plan
WHERE lr * steps < $min_reach
