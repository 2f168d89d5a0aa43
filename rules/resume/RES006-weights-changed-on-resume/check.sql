-- Trained weights whose values after the resume are not those that were saved, though their format is (status `changed`, or
-- `reset` for weights that became zero). Another format is RES004's, another order RES005's.
-- Schedule-Free: weights that are now at x, where they were saved at y, changed by where they were taken from and not in
-- what they are; and its own way between the two points moves weights too, so what else changed there weighs half.
-- Weights that are what was written into the checkpoint were exchanged when it was saved (EMA006, SF003), not now.
-- NULL: `saved` is NULL for what is new, and left out; `loaded` is NULL for what is gone.
WITH counted AS (
    SELECT segment, start FROM resumes WHERE NOT superseded
),
points AS (
    SELECT
        segment,
        max(loaded) FILTER (WHERE key = 'weights') AS digest_now,
        max(saved) FILTER (WHERE key = 'weights at x') AS digest_at_x
    FROM continuity WHERE item = 'schedule-free' GROUP BY segment
),
as_written AS (
    SELECT DISTINCT counted.segment
    FROM counted
    JOIN checksums AS resumed
        ON resumed.segment = counted.segment AND resumed.moment = 'resumed' AND resumed.item = 'raw'
    JOIN checksums AS written
        ON written.segment < counted.segment AND written.step = start AND written.moment = 'saved' AND written.item = 'raw'
    WHERE resumed.digest = written.digest
),
averages AS (
    SELECT segment, param, saved AS average FROM continuity WHERE item = 'ema' AND key = 'shadow'
),
weights AS (
    SELECT
        counted.segment,
        start,
        status IN ('changed', 'reset') OR loaded IS NULL AS differs,
        status IN ('changed', 'reset') AND loaded = average AS averaged,
        param
    FROM continuity
    JOIN counted USING (segment)
    LEFT JOIN averages USING (segment, param)
    WHERE item = 'weights' AND saved LIKE '%[%'
),
runs AS (
    SELECT
        segment,
        start,
        count(DISTINCT param) FILTER (WHERE differs) AS differing,
        count(DISTINCT param) FILTER (WHERE averaged) AS averaged,
        count(DISTINCT param) AS tensors,
        min(param) FILTER (WHERE differs) AS example
    FROM weights
    GROUP BY segment, start
)
SELECT
    'resume' AS where_kind,
    'step ' || start AS where_name,
    start AS first_step,
    differing / tensors AS value,
    0 AS threshold,
    CASE WHEN points.segment IS NULL THEN 1.0 ELSE 0.5 END * differing / tensors AS score,
    differing,
    tensors,
    CASE WHEN averaged >= 0.5 * differing THEN 'those of the average (EMA)' ELSE 'not the average (EMA) either' END AS whose,
    example
FROM runs LEFT JOIN points USING (segment)
WHERE differing > 0
    AND runs.segment NOT IN (SELECT segment FROM as_written)
    AND (digest_now = digest_at_x) IS NOT TRUE
