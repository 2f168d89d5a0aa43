-- The point that the loaded weights are at, by their digest, beside the mode that the optimizer is in. Where z was lost
-- there is one point only, and nothing to mix up (SF001 is about that).
-- Weights that are at neither point have no row with another status than match. NULL: a comparison that was not made has
-- no row. No number is compared, so NaN plays no part.
SELECT
    'resume' AS where_kind,
    'step ' || step AS where_name,
    step AS first_step,
    step AS last_step,
    1.0 AS value,
    1.0 AS score,
    trim(saved, '"') AS found,
    trim(loaded, '"') AS mode
FROM continuity AS point
WHERE item = 'schedule-free'
    AND key = 'mode at the weights'' point'
    AND status = 'changed'
    AND EXISTS (
        SELECT 1 FROM continuity AS average
        WHERE average.segment = point.segment AND average.item = 'optimizer' AND average.key = 'z'
            AND average.loaded IS NOT NULL
    )
    AND segment NOT IN (SELECT segment FROM resumes WHERE superseded)
