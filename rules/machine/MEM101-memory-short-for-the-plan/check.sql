-- What the plan needs at the least, as preflight adds it up, against the memory of this machine.
-- NULL: without the model's files nothing is added up, and there is no row.
WITH plan AS (
    SELECT
        max(try_cast(value AS DOUBLE)) FILTER (WHERE key = 'plan.memory_bytes') AS needed,
        max(try_cast(value AS DOUBLE)) FILTER (WHERE key = 'plan.memory_there_bytes') AS there,
        max(try_cast(value AS DOUBLE)) FILTER (WHERE key = 'plan.activation_bytes') AS activations,
        max(try_cast(value AS DOUBLE)) FILTER (WHERE key = 'plan.largest_batch') AS batch,
        max(try_cast(value AS DOUBLE)) FILTER (WHERE key = 'train.gradient_accumulation') AS accumulation,
        max(value) FILTER (WHERE key = 'plan.memory_place') AS place
    FROM config
),
room AS (
    -- The batch that what is left of the memory holds.
    SELECT *, floor(batch * ($max_share * there - (needed - activations)) / nullif(activations, 0)) AS fits FROM plan
)
SELECT
    'run' AS where_kind,
    'run' AS where_name,
    NULL AS first_step,
    NULL AS last_step,
    needed / there AS value,
    $max_share AS threshold,
    1.0 - $max_share * there / needed AS score,
    needed / 2 ^ 30 AS needed_gib,
    there / 2 ^ 30 AS there_gib,
    (needed - activations) / 2 ^ 30 AS fixed_gib,
    activations / 2 ^ 30 AS activations_gib,
    batch,
    place,
    -- Where not even one sample fits, smaller batches are no way out.
    CASE WHEN fits >= 1 THEN fits END::BIGINT AS fitting,
    CASE WHEN fits >= 1 THEN ceil(accumulation * batch / fits) END::BIGINT AS accumulated
FROM room
WHERE needed > $max_share * there
