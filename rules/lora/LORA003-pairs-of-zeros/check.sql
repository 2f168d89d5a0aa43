-- LoRA pairs whose A and B are both zero at the last look: each one's gradient has the other as a factor, so both stay.
-- B alone is zero at the beginning, which is as it should be; A is random then.
-- NaN is no zero; NULL (not measured) is left out.
WITH ends AS (
    SELECT module, a_norm, b_norm, step FROM adapter_ends
),
pairs AS (
    SELECT
        count(*) FILTER (WHERE a_norm = 0 AND b_norm = 0) / count(*) AS share,
        count(*) FILTER (WHERE a_norm = 0 AND b_norm = 0) AS dead,
        count(*) AS pairs,
        min(module) FILTER (WHERE a_norm = 0 AND b_norm = 0) AS example,
        max(step) AS last_step
    FROM ends
    WHERE a_norm IS NOT NULL AND b_norm IS NOT NULL
)
SELECT
    'run' AS where_kind,
    'run' AS where_name,
    (SELECT min(step) FROM adapter_steps) AS first_step,
    last_step,
    share AS value,
    $max_share AS threshold,
    share AS score,
    dead,
    pairs,
    example
FROM pairs
WHERE share > $max_share
