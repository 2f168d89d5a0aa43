-- The states of the random generators beside those that were saved. One that nothing has drawn from is equal anyway.
-- NULL: a generator that was not saved, or is there no more, has nothing to compare. Digests have no NaN.
SELECT
    'run' AS where_kind,
    key AS where_name,
    step AS first_step,
    step AS last_step,
    1.0 AS value,
    1.0 AS score,
    CASE WHEN key = 'rounding' THEN 'stochastic rounding' ELSE 'dropout, and whatever else torch draws' END AS what
FROM continuity
WHERE item = 'random' AND saved IS NOT NULL AND loaded IS NOT NULL AND status <> 'match'
    AND segment NOT IN (SELECT segment FROM resumes WHERE superseded)
