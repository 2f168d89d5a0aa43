-- Trained tensors that nothing can train since the last resume, though they could be before: frozen, not in the optimizer,
-- in the optimizer but not in the model, or no longer among the trained ones; and that did not move where it was measured.
-- NULL: a flag that is not known is no fault, and a tensor that was not probed is judged by its flags.
-- NaN sorts above every number, so a tensor that went non-finite counts as moved.
WITH now AS (
    SELECT
        param,
        numel,
        CASE
            WHEN NOT is_model_object THEN 'not those that the model uses'
            WHEN NOT in_optimizer THEN 'not in the optimizer'
            WHEN NOT requires_grad THEN 'frozen'
        END AS fault
    FROM params
),
earlier AS (
    SELECT param, max(numel) AS numel, bool_or(coalesce(is_model_object AND in_optimizer AND requires_grad, true)) AS sound
    FROM params_all
    WHERE segment < (SELECT max(segment) FROM params_all)
    GROUP BY param
),
tensors_now AS (
    SELECT coalesce(now.param, earlier.param) AS param, coalesce(now.numel, earlier.numel) AS numel,
        CASE WHEN now.param IS NULL THEN 'no longer among the trained' ELSE fault END AS fault,
        -- What was so from the beginning has nothing to do with a resume. A new run that goes on from another knows none.
        coalesce(earlier.sound, true) AS sound_before
    FROM now FULL JOIN earlier ON now.param = earlier.param
),
moves AS (
    SELECT param, max(update_norm_max) AS moved
    FROM tensor_windows
    WHERE segment = (SELECT max(segment) FROM params_all)
    GROUP BY param
),
faults AS (
    SELECT fault, sum(numel) AS numel, count(*) AS tensors, min(param) AS example
    FROM tensors_now LEFT JOIN moves USING (param)
    WHERE fault IS NOT NULL AND sound_before AND coalesce(moved, 0) = 0
    GROUP BY fault
)
SELECT
    'parameters' AS where_kind,
    fault AS where_name,
    (SELECT max(step) FROM events WHERE kind = 'resume') AS first_step,
    (SELECT max(last_step) FROM tensor_windows) AS last_step,
    faults.numel / (SELECT sum(numel) FROM tensors_now) AS value,
    $max_share AS threshold,
    faults.numel / (SELECT sum(numel) FROM tensors_now) AS score,
    tensors,
    example
FROM faults
WHERE faults.numel / (SELECT sum(numel) FROM tensors_now) > $max_share
