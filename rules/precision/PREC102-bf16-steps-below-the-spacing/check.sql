-- AdamW moves an element by about lr in a step; a bf16 of magnitude w has its neighbours |w|·2⁻⁸ to |w|·2⁻⁷ away, and
-- nearest rounding drops what is below half of that. Judged at the median of the tensors' median magnitudes.
-- float32 weights, and bf16 ones that are rounded stochastically, lose none of it.
-- NULL: weight files that are not at hand leave it not observable.
WITH plan AS (
    SELECT
        max(try_cast(value AS DOUBLE)) FILTER (WHERE key = 'optimizer.lr') AS lr,
        max(value) FILTER (WHERE key = 'precision.weights') AS format,
        max(value) FILTER (WHERE key = 'precision.stochastic_rounding') AS stochastic
    FROM config
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
WHERE format = 'bf16' AND stochastic = 'false' AND lr / (magnitude / 512) < $min_ratio
