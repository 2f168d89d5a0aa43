-- The highest lr, in a run as it was in effect (a warmup and a schedule go below it), against 1; and, in a run, a
-- held-out loss that did not come down.
-- NaN: a last loss that is not finite counts as not having come down. NULL: no lr, no row; no loss is a plan.
WITH plan AS (
    SELECT
        arg_max(try_cast(value AS DOUBLE), coalesce(segment, 0)) FILTER (WHERE key = 'optimizer.lr') AS lr,
        arg_max(value, coalesce(segment, 0)) FILTER (WHERE key = 'optimizer.type') AS optimizer,
        arg_max(value, coalesce(segment, 0)) FILTER (WHERE key = 'train.method') = 'lora' AS is_lora
    FROM config
),
used AS (
    SELECT max(lr) AS lr FROM groups
),
curve AS (
    SELECT
        min(step) AS first_step,
        max(step) AS last_step,
        arg_min(loss, step) AS first_loss,
        arg_max(loss, step) AS last_loss
    FROM evals
    WHERE weights = 'raw' AND loss IS NOT NULL
),
judged AS (
    SELECT
        first_step,
        last_step,
        first_loss,
        last_loss,
        optimizer,
        coalesce(used.lr, plan.lr) AS lr,
        coalesce(
            NOT isfinite(last_loss)
            OR (first_loss - last_loss) / first_loss < CASE WHEN is_lora THEN $min_lora_fall ELSE $min_fall END,
            true
        ) AS unlearned
    FROM plan, used, curve
)
SELECT
    'run' AS where_kind,
    'run' AS where_name,
    first_step,
    last_step,
    lr AS value,
    CASE WHEN lr < $min_lr THEN $min_lr ELSE $max_lr END AS threshold,
    CASE WHEN lr < $min_lr THEN 1.0 - lr ELSE 1.0 - $max_lr / lr END AS score,
    optimizer,
    CASE WHEN last_loss IS NULL THEN ''
        ELSE format('; the held-out loss ended at {:.3f} after {:.3f}', last_loss, first_loss) END AS outcome
FROM judged
WHERE (lr < $min_lr OR lr > $max_lr) AND unlearned
