-- plan.lora_scale, which is alpha / rank.
-- NULL: no LoRA, no row.
WITH plan AS (
    SELECT
        max(try_cast(value AS DOUBLE)) FILTER (WHERE key = 'plan.lora_scale') AS scale,
        max(try_cast(value AS DOUBLE)) FILTER (WHERE key = 'lora.rank') AS rank
    FROM config
)
SELECT
    'run' AS where_kind,
    'run' AS where_name,
    NULL AS first_step,
    NULL AS last_step,
    scale AS value,
    $min_scale AS threshold,
    1.0 - scale / $min_scale AS score,
    rank
FROM plan
WHERE scale < $min_scale
