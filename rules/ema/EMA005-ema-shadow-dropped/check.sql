-- Every tensor of the average as it was saved beside what the resumed run began with. Another format is no hit (a row
-- of status dtype), and neither is an average that was switched on or off on purpose (a row of the configuration). One
-- that went to another parameter (permuted) was not dropped: that is RES005's.
-- NULL: a tensor that was not saved, or whose status is not known, is left out. Digests and counts have no NaN.
WITH shadows AS (
    SELECT segment, step, param, loaded, status NOT IN ('match', 'dtype', 'permuted') AS lost
    FROM continuity AS c
    WHERE item = 'ema' AND key = 'shadow' AND saved IS NOT NULL AND status IS NOT NULL
        AND NOT EXISTS (
            SELECT 1 FROM continuity AS config
            WHERE config.segment = c.segment AND config.item = 'config' AND config.key = 'ema.enabled'
        )
        AND c.segment NOT IN (SELECT segment FROM resumes WHERE superseded)
),
weights AS (
    SELECT DISTINCT segment, param, loaded FROM continuity WHERE item = 'weights' AND key = 'weight'
),
averages AS (
    SELECT
        shadows.segment,
        step,
        count(*) AS tensors,
        count(*) FILTER (WHERE lost) AS lost,
        count(*) FILTER (WHERE lost AND shadows.loaded IS NULL) AS gone,
        count(*) FILTER (WHERE lost AND shadows.loaded = weights.loaded) AS copies
    FROM shadows LEFT JOIN weights USING (segment, param)
    GROUP BY shadows.segment, step
)
SELECT
    'run' AS where_kind,
    'run' AS where_name,
    step AS first_step,
    step AS last_step,
    lost / tensors AS value,
    $max_share AS threshold,
    -- A copy of the weights has lost the smoothing, and is near what it should be.
    (lost - 0.5 * copies) / tensors AS score,
    lost,
    tensors,
    CASE
        WHEN gone = lost THEN 'there is none any more'
        WHEN copies = lost THEN 'it began again as a copy of the weights'
        ELSE 'it holds neither what was saved nor the weights of the moment'
    END AS found
FROM averages
WHERE lost / tensors > $max_share
