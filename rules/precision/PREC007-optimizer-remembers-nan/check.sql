-- Tensors of which a piece of the optimizer's state is not finite at the last look at it, by the sparse `state` (any
-- optimizer, any piece) or by the first moment's norm in `tensors` (at every look).
-- NaN and Inf are what is looked for. NULL: a piece that could not be read, or a tensor without moments, is none.
WITH pieces AS (
    SELECT param, key, dtype, shape, step, NOT (isfinite(norm) AND isfinite(absmax)) AS is_bad
    FROM state
    WHERE norm IS NOT NULL
    UNION ALL
    SELECT param, 'first moment' AS key, NULL AS dtype, NULL AS shape, step, NOT isfinite(state_m_norm) AS is_bad
    FROM tensor_looks
    WHERE state_m_norm IS NOT NULL
),
last_looks AS (
    SELECT
        param,
        key,
        any_value(dtype) AS dtype,
        any_value(shape) AS shape,
        min(step) FILTER (WHERE is_bad) AS first_step,
        max(step) AS last_step,
        arg_max(is_bad, step) AS is_bad
    FROM pieces
    GROUP BY param, key
),
tensors_hit AS (
    SELECT
        param,
        bool_or(is_bad) AS is_bad,
        -- A piece by its own name is the better example.
        arg_min(key, first_step + CASE WHEN dtype IS NULL THEN 1e9 ELSE 0 END) FILTER (WHERE is_bad) AS key,
        arg_min(dtype || ' ' || shape, first_step) FILTER (WHERE is_bad AND dtype IS NOT NULL) AS format,
        min(first_step) FILTER (WHERE is_bad) AS first_step,
        max(last_step) AS last_step
    FROM last_looks
    GROUP BY param
),
weights AS (
    SELECT sum(weight_nonfinite) AS nonfinite FROM tensor_ends
),
run AS (
    SELECT
        sum(p.numel) FILTER (WHERE is_bad) / sum(p.numel) AS share,
        count(*) FILTER (WHERE is_bad) AS tensors,
        count(*) AS trained,
        min(t.first_step) AS first_step,
        max(last_step) AS last_step,
        arg_min(t.param, t.param) FILTER (WHERE is_bad) AS example,
        arg_min(t.key, t.param) FILTER (WHERE is_bad) AS key,
        arg_min(t.format, t.param) FILTER (WHERE is_bad) AS format
    FROM tensors_hit AS t JOIN params AS p USING (param)
)
SELECT
    'run' AS where_kind,
    'run' AS where_name,
    first_step,
    last_step,
    share AS value,
    $max_share AS threshold,
    share AS score,
    tensors,
    trained,
    example,
    key,
    coalesce(format, 'as `tensors` shows') AS format,
    CASE WHEN nonfinite > 0 THEN 'are lost with it' ELSE 'are finite and learn nothing more' END AS consequence
FROM run, weights
WHERE share > $max_share
