-- The mean of the last two evaluations against the first, of the weights as trained.
-- NaN: a loss that went non-finite gives a NaN fall, and NaN < x is false: no hit here (SYM004 is its symptom).
WITH numbered AS (
    SELECT
        step,
        loss,
        row_number() OVER (ORDER BY step) AS number,
        row_number() OVER (ORDER BY step DESC) AS number_from_end
    FROM evals
    WHERE weights = 'raw' AND loss IS NOT NULL
),
ends AS (
    SELECT
        min(step) AS first_step,
        max(step) AS last_step,
        max(loss) FILTER (WHERE number = 1) AS first_loss,
        avg(loss) FILTER (WHERE number_from_end <= 2) AS last_loss
    FROM numbered
)
SELECT
    'run' AS where_kind,
    'run' AS where_name,
    first_step,
    last_step,
    (first_loss - last_loss) / first_loss AS value,
    $min_fall AS threshold,
    least(1.0, 1.0 - (first_loss - last_loss) / first_loss / $min_fall) AS score,
    first_loss,
    last_loss,
    (last_loss - first_loss) / first_loss AS change
FROM ends
WHERE (first_loss - last_loss) / first_loss < $min_fall
