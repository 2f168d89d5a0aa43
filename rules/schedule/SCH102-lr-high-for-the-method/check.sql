-- The configured lr against the most that is recommended for LoRA or for all weights.
-- NULL: no lr or no method, no row.
WITH plan AS (
    SELECT
        max(try_cast(value AS DOUBLE)) FILTER (WHERE key = 'optimizer.lr') AS lr,
        max(value) FILTER (WHERE key = 'train.method') = 'lora' AS is_lora
    FROM config
),
limits AS (
    SELECT lr, is_lora, CASE WHEN is_lora THEN $max_lora ELSE $max_finetune END AS most FROM plan
)
SELECT
    'run' AS where_kind,
    'run' AS where_name,
    NULL AS first_step,
    NULL AS last_step,
    lr AS value,
    most AS threshold,
    1.0 - most / lr AS score,
    CASE WHEN is_lora THEN 'a LoRA' ELSE 'all weights' END AS method,
    most / 10 AS usual
FROM limits
WHERE lr > most
