-- Tensors that were to be trained and cannot be, from the first step on: frozen, not in the optimizer, or in the
-- optimizer but not in the model; and that did not move where it was measured. After a resume RES011 asks the same.
-- NULL: a flag that is not known is no fault, and a tensor that was not probed is judged by its flags.
-- NaN sorts above every number, so a tensor that went non-finite counts as moved.
WITH flagged AS (
    SELECT
        param,
        coalesce(name, param) AS name,
        numel,
        CASE
            WHEN NOT is_model_object THEN 'are not the objects that the model uses'
            WHEN NOT in_optimizer THEN 'are not in the optimizer'
            WHEN NOT requires_grad THEN 'are frozen'
        END AS fault
    FROM params
    WHERE NOT EXISTS (SELECT 1 FROM params_all WHERE segment > 0)
        AND NOT EXISTS (SELECT 1 FROM events WHERE kind = 'resume')
),
moved AS (
    SELECT param, max(update_norm_max) AS largest, min(first_step) AS first_step, max(last_step) AS last_step
    FROM tensor_windows
    GROUP BY param
),
idle AS (
    SELECT flagged.*, first_step, last_step, fault IS NOT NULL AND coalesce(largest, 0) = 0 AS is_idle
    FROM flagged LEFT JOIN moved USING (param)
),
run AS (
    SELECT
        sum(numel) FILTER (WHERE is_idle) / sum(numel) AS share,
        count(*) FILTER (WHERE is_idle) AS tensors,
        min(name) FILTER (WHERE is_idle) AS example,
        mode(fault) FILTER (WHERE is_idle) AS fault,
        min(first_step) AS first_step,
        max(last_step) AS last_step
    FROM idle
)
SELECT
    'run' AS where_kind,
    'run' AS where_name,
    coalesce(first_step, 1) AS first_step,
    last_step,
    share AS value,
    $max_share AS threshold,
    share AS score,
    tensors,
    example,
    fault
FROM run
WHERE share > $max_share
