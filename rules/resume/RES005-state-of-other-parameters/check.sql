-- Tensors that are, to the bit, what another parameter of the same shape was saved with (status `permuted`), for weights,
-- optimizer state and average apart.
-- NULL: `saved` is NULL for what is new, and left out.
WITH counted AS (
    SELECT segment, start FROM resumes WHERE NOT superseded
),
tensors AS (
    SELECT counted.segment, start, item, param, bool_or(status = 'permuted') AS swapped
    FROM continuity JOIN counted USING (segment)
    WHERE item IN ('weights', 'optimizer', 'ema') AND saved LIKE '%[%'
    GROUP BY counted.segment, start, item, param
),
items AS (
    SELECT
        segment,
        start,
        item,
        count(*) FILTER (WHERE swapped) AS swapped,
        count(*) AS tensors,
        min(param) FILTER (WHERE swapped) AS example
    FROM tensors
    GROUP BY segment, start, item
)
SELECT
    'state' AS where_kind,
    CASE item WHEN 'optimizer' THEN 'optimizer state' WHEN 'ema' THEN 'average (EMA)' ELSE item END AS where_name,
    start AS first_step,
    swapped / tensors AS value,
    0 AS threshold,
    swapped / tensors AS score,
    swapped,
    tensors,
    example
FROM items
-- A single one is no exchange.
WHERE swapped >= 2
