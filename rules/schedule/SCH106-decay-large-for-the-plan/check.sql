-- Decoupled decay multiplies each weight by 1 − lr·decay at a step: over the run that leaves exp(−lr·decay·steps), with lr
-- at its mean. A schedule that falls to r is half way on average ((1 + r) / 2), a polynomial at 1 / (power + 1), and a
-- warmup rises in a line.
-- NULL: no plan, no row.
WITH plan AS (
    SELECT
        max(try_cast(value AS DOUBLE)) FILTER (WHERE key = 'optimizer.lr') AS lr,
        max(try_cast(value AS DOUBLE)) FILTER (WHERE key = 'optimizer.weight_decay') AS decay,
        max(try_cast(value AS DOUBLE)) FILTER (WHERE key = 'plan.steps') AS steps,
        max(try_cast(value AS DOUBLE)) FILTER (WHERE key = 'plan.warmup_steps') AS warmup,
        max(value) FILTER (WHERE key = 'scheduler.type') AS schedule,
        max(try_cast(value AS DOUBLE)) FILTER (WHERE key = 'scheduler.min_lr_ratio') AS least,
        max(try_cast(value AS DOUBLE)) FILTER (WHERE key = 'scheduler.power') AS power
    FROM config
),
whole_steps AS (
    -- So many steps at the whole rate would take as much.
    SELECT
        *,
        CASE WHEN warmup < steps THEN warmup / 2 ELSE steps * steps / (2 * warmup) END
        + greatest(0, steps - warmup) * CASE
            WHEN schedule IN ('linear', 'cosine', 'cosine-with-restarts') THEN (1 + least) / 2
            WHEN schedule = 'polynomial' THEN least + (1 - least) / (power + 1)
            ELSE 1
        END AS whole
    FROM plan
),
erased AS (
    SELECT *, 1 - exp(-lr * decay * whole) AS lost FROM whole_steps
)
SELECT
    'run' AS where_kind,
    'run' AS where_name,
    NULL AS first_step,
    NULL AS last_step,
    lost AS value,
    $max_lost AS threshold,
    lost AS score,
    lr,
    decay,
    steps,
    -ln(0.99) / (lr * whole) AS lower_decay
FROM erased
WHERE lost > $max_lost
