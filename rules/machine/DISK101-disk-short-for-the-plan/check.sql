-- The checkpoints that lie on the disk at once, against what is free there.
-- NULL: without the model's files their size is not known, and there is no row.
WITH plan AS (
    SELECT
        max(try_cast(value AS DOUBLE)) FILTER (WHERE key = 'plan.disk_bytes') AS needed,
        max(try_cast(value AS DOUBLE)) FILTER (WHERE key = 'plan.checkpoint_bytes') AS each_bytes,
        max(try_cast(value AS DOUBLE)) FILTER (WHERE key = 'plan.checkpoints') AS checkpoints,
        max(try_cast(value AS DOUBLE)) FILTER (WHERE key = 'plan.disk_free_bytes') AS free
    FROM config
)
SELECT
    'run' AS where_kind,
    'run' AS where_name,
    NULL AS first_step,
    NULL AS last_step,
    needed / nullif(free, 0) AS value,
    $max_share AS threshold,
    1.0 - $max_share * free / needed AS score,
    checkpoints,
    each_bytes / 2 ^ 30 AS each_gib,
    needed / 2 ^ 30 AS needed_gib,
    free / 2 ^ 30 AS free_gib,
    -- An old one goes only when the new one is there. Where not even two fit, keeping fewer is no way out.
    CASE WHEN $max_share * free >= 2 * each_bytes
        THEN least(10, floor($max_share * free / each_bytes) - 1) END::BIGINT AS keep
FROM plan
WHERE needed > $max_share * free
