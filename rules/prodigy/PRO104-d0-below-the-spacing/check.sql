-- A number of p bits of fraction and of magnitude w has its neighbours |w|·2⁻ᵖ⁻¹ to |w|·2⁻ᵖ away, and nearest rounding
-- drops what is below half of that: p is 7 for bf16, 10 for fp16, 23 for float32. Prodigy's first steps are lr · d0 long.
-- Stochastic rounding loses none of it.
-- NULL: weight files that are not at hand leave it not observable.
WITH plan AS (
    SELECT
        max(try_cast(value AS DOUBLE)) FILTER (WHERE key = 'optimizer.lr') AS lr,
        max(try_cast(value AS DOUBLE)) FILTER (WHERE key = 'optimizer.d0') AS d0,
        max(value) FILTER (WHERE key = 'precision.weights') AS format,
        max(value) FILTER (WHERE key = 'precision.stochastic_rounding') AS stochastic
    FROM config
),
typical AS (
    SELECT median(weight_abs_median) AS magnitude FROM params WHERE weight_abs_median > 0
),
judged AS (
    SELECT
        CASE format WHEN 'fp32' THEN 'float32' ELSE format END AS format,
        lr * d0 AS step,
        magnitude,
        lr * d0 / (magnitude * CASE format WHEN 'bf16' THEN 2.0 ^ -9 WHEN 'fp16' THEN 2.0 ^ -12 ELSE 2.0 ^ -25 END) AS ratio
    FROM plan, typical
    WHERE stochastic = 'false'
)
SELECT
    'run' AS where_kind,
    'run' AS where_name,
    NULL AS first_step,
    NULL AS last_step,
    ratio AS value,
    $min_ratio AS threshold,
    1.0 - least(1.0, ratio) AS score,
    format,
    step,
    magnitude AS weight
FROM judged
WHERE ratio < $min_ratio
