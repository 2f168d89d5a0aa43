-- Tensors whose format has fewer significant bits after the resume than when they were saved (status `dtype`), for
-- weights, optimizer state and average apart. Tensors show as "dtype[shape] digest". `loaded` is the format as the file
-- had it, or that of the tensor where something changed it in memory.
-- NULL: a format that is not known has no bits, and gives no row.
WITH counted AS (
    SELECT segment, start FROM resumes WHERE NOT superseded
),
formats AS (
    SELECT * FROM (
        VALUES ('float64', 53), ('float32', 24), ('float16', 11), ('bfloat16', 8), ('float8_e4m3fn', 4), ('float8_e5m2', 3)
    ) AS known (dtype, bits)
),
tensors AS (
    SELECT
        counted.segment,
        start,
        item,
        param,
        key,
        split_part(saved, '[', 1) AS saved_dtype,
        split_part(loaded, '[', 1) AS loaded_dtype
    FROM continuity JOIN counted USING (segment)
    WHERE item IN ('weights', 'optimizer', 'ema') AND saved LIKE '%[%' AND loaded IS NOT NULL
),
-- A checkpoint without optimizer state holds the weights for use, in the format of precision.save.
stateless AS (
    SELECT segment, bool_and(status = 'missing') AS weights_only FROM continuity
    WHERE item = 'optimizer' AND saved IS NOT NULL GROUP BY segment
),
lower AS (
    SELECT
        tensors.segment,
        start,
        item,
        arg_max(saved_dtype, was.bits - now.bits) FILTER (WHERE now.bits < was.bits) AS saved_dtype,
        arg_max(loaded_dtype, was.bits - now.bits) FILTER (WHERE now.bits < was.bits) AS loaded_dtype,
        count(DISTINCT (param, key)) FILTER (WHERE now.bits < was.bits) AS converted,
        count(DISTINCT (param, key)) AS tensors
    FROM tensors
    LEFT JOIN formats AS was ON was.dtype = saved_dtype
    LEFT JOIN formats AS now ON now.dtype = loaded_dtype
    GROUP BY tensors.segment, start, item
)
SELECT
    'state' AS where_kind,
    CASE item WHEN 'optimizer' THEN 'optimizer state' WHEN 'ema' THEN 'average (EMA)' ELSE item END AS where_name,
    start AS first_step,
    converted / tensors AS value,
    0 AS threshold,
    0.1 * converted / tensors AS score,
    converted,
    tensors,
    saved_dtype,
    loaded_dtype,
    CASE
        WHEN item = 'weights' AND coalesce(weights_only, false)
        THEN 'the checkpoint had no state, so the weights for use were taken, in the format of precision.save'
        ELSE 'something converted them between save and resume'
    END AS why
FROM lower LEFT JOIN stateless USING (segment)
WHERE converted > 0
