-- Saves whose weights for use are at y: the optimizer says so while they are written, or their digest is that of the live
-- weights right before, which were at y. Up to the first step that moves them the two points are one, so equal digests
-- count only where two or more looks saw the weights move.
-- NULL: a save without a mode or a digest gives no row or no equality. NaN: `NaN > 0` is true in DuckDB, and weights that
-- went non-finite are not asked where they are, so non-finite norms are left out.
WITH saves AS (
    SELECT DISTINCT
        saved.segment,
        saved.step,
        (saved.mode = 'y' AND saved.step > 1) OR coalesce(
            saved.digest = live.digest AND live.mode = 'y' AND (
                SELECT count(DISTINCT step) FROM tensor_steps AS looks
                WHERE step_energy > 0 AND looks.step <= saved.step
            ) >= 2, false
        ) AS at_y
    FROM checksums AS saved
    LEFT JOIN checksums AS live
        ON live.segment = saved.segment AND live.step = saved.step AND live.rank = saved.rank
        AND live.item = 'raw' AND live.moment = 'before_save'
    WHERE saved.moment = 'saved' AND saved.item = 'raw' AND saved.mode IS NOT NULL
)
SELECT
    'run' AS where_kind,
    'run' AS where_name,
    min(step) FILTER (WHERE at_y) AS first_step,
    max(step) FILTER (WHERE at_y) AS last_step,
    count(*) FILTER (WHERE at_y) / count(*) AS value,
    -- The newest checkpoint is the one that is used.
    CASE WHEN arg_max(at_y, step) THEN 1.0 ELSE count(*) FILTER (WHERE at_y) / count(*) END AS score,
    count(*) FILTER (WHERE at_y) AS at_y,
    count(*) AS saves
FROM saves
HAVING bool_or(at_y)
