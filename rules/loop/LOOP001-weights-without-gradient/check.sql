-- Tensors in whose gradient no element was non-zero at any look after the first. (A LoRA's A has a zero gradient at its
-- first step, because B is zero then.)
-- NaN counts as a gradient: it is not zero. NULL gradients count as none.
WITH looks AS (
    SELECT
        param,
        sum(nonzero_count) AS nonzero,
        sum(looks) AS looks,
        min(first_step) AS first_step,
        max(last_step) AS last_step
    FROM tensor_windows
    WHERE first_step > (SELECT min(first_step) FROM tensor_windows)
    GROUP BY param
),
silent AS (
    SELECT
        sum(p.numel) FILTER (WHERE nonzero = 0) / sum(p.numel) AS share,
        count(*) FILTER (WHERE nonzero = 0) AS tensors,
        count(DISTINCT p.module) FILTER (WHERE nonzero = 0) AS modules,
        string_agg(DISTINCT p.component, ', ' ORDER BY p.component) FILTER (WHERE nonzero = 0) AS components,
        min(p.param) FILTER (WHERE nonzero = 0) AS example,
        arg_min(p.shape, p.param) FILTER (WHERE nonzero = 0) AS shape,
        min(looks) AS looks,
        min(first_step) AS first_step,
        max(last_step) AS last_step
    FROM looks JOIN params AS p USING (param)
    -- What is frozen or held by nobody has no gradient for another reason (RES011).
    WHERE (p.requires_grad AND p.in_optimizer AND p.is_model_object) IS NOT FALSE
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
    CASE WHEN modules > 0 THEN format(' in {} modules of {}', modules, coalesce(components, 'the model')) ELSE '' END
        AS within,
    example || coalesce(' ' || shape, '') AS example,
    looks
FROM silent
WHERE share > $max_share
