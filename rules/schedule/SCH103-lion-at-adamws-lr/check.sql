-- The highest lr, in a run as it was in effect, against a third of what is recommended for AdamW; and, in a run, a
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
        is_lora,
        coalesce(used.lr, plan.lr) AS lr,
        CASE WHEN is_lora THEN $max_lora ELSE $max_finetune END AS most,
        coalesce(
            NOT isfinite(last_loss)
            OR (first_loss - last_loss) / first_loss < CASE WHEN is_lora THEN 0 ELSE $min_fall END,
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
    most AS threshold,
    1.0 - most / lr AS score,
    optimizer,
    CASE WHEN is_lora THEN 'a LoRA' ELSE 'all weights' END AS method,
    CASE WHEN last_loss IS NULL THEN ''
        ELSE format('; the held-out loss ended at {:.3f} after {:.3f}', last_loss, first_loss) END AS outcome,
    lr / 10 AS lower_lr
FROM judged
WHERE lr > most AND unlearned
