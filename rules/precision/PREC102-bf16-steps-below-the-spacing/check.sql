-- AdamW moves an element by about lr in a step; a bf16 of magnitude w has its neighbours |w|·2⁻⁸ to |w|·2⁻⁷ away, and
-- nearest rounding drops what is below half of that. Judged at the median of the tensors' median magnitudes.
-- NULL: weight files that are not at hand, or not readable without torch, leave it not observable.
WITH plan AS (
    SELECT max(try_cast(value AS DOUBLE)) FILTER (WHERE key = 'optimizer.lr') AS lr FROM config
),
weights AS (
    SELECT median(weight_abs_median) AS magnitude FROM params WHERE weight_abs_median > 0
)
SELECT
    'run' AS where_kind,
    'run' AS where_name,
    NULL AS first_step,
    NULL AS last_step,
    lr / (magnitude / 512) AS value,
    $min_ratio AS threshold,
    1.0 - least(1.0, lr / (magnitude / 512)) AS score,
    lr,
    magnitude AS weight
FROM plan, weights
WHERE lr / (magnitude / 512) < $min_ratio
