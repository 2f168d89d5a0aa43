-- Evaluations and samples of the weights as trained, by the point that they were made at. Up to the first step that moves
-- them the two points are one, so step 1 is left out.
-- NULL: a mode that is not known, and the average (EMA), say nothing. No number is compared, so NaN plays no part.
WITH made AS (
    SELECT step, mode, true AS evaluation FROM evals WHERE weights = 'raw' AND mode IS NOT NULL AND step > 1
    UNION ALL
    SELECT step, mode, false FROM samples WHERE weights = 'raw' AND mode IS NOT NULL AND step > 1
)
SELECT
    'run' AS where_kind,
    'run' AS where_name,
    min(step) FILTER (WHERE mode = 'y') AS first_step,
    max(step) FILTER (WHERE mode = 'y') AS last_step,
    count(*) FILTER (WHERE mode = 'y') / count(*) AS value,
    count(*) FILTER (WHERE mode = 'y') / count(*) AS score,
    count(*) FILTER (WHERE mode = 'y' AND evaluation) AS evaluations,
    count(*) FILTER (WHERE mode = 'y' AND NOT evaluation) AS pictures
FROM made
HAVING count(*) FILTER (WHERE mode = 'y') > 0
