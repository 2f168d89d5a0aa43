-- A loss scale that is higher after the resume than it was saved, and the steps that were skipped at scales that the run
-- had already found too high. A higher scale that fits costs nothing and is no hit, nor is a lower one.
-- NULL: no number, or no GradScaler after the resume, gives no row. NaN: neither is a scale ever.
WITH scales AS (
    SELECT
        segment,
        min(step) AS start,
        max(try_cast(saved AS DOUBLE)) AS saved,
        max(try_cast(loaded AS DOUBLE)) AS loaded
    FROM continuity
    WHERE item = 'scaler' AND key = 'scale'
    GROUP BY segment
),
taken AS (
    SELECT segment, step, bool_or(skipped) AS skipped, max(loss_scale) AS loss_scale FROM steps GROUP BY segment, step
)
SELECT
    'resume' AS where_kind,
    'step ' || start AS where_name,
    start AS first_step,
    max(taken.step) FILTER (WHERE skipped AND loss_scale > saved) AS last_step,
    count(*) FILTER (WHERE skipped AND loss_scale > saved) / count(*) AS value,
    0 AS threshold,
    count(*) FILTER (WHERE skipped AND loss_scale > saved) / count(*) AS score,
    saved AS saved_scale,
    loaded AS loaded_scale,
    count(*) FILTER (WHERE skipped AND loss_scale > saved) AS lost_steps,
    count(*) AS steps
FROM scales JOIN taken ON taken.segment = scales.segment AND taken.step > scales.start
WHERE loaded > saved
GROUP BY scales.segment, start, saved, loaded
HAVING count(*) FILTER (WHERE skipped AND loss_scale > saved) > 0
