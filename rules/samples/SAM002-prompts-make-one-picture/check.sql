-- Moments at which several prompts were sampled from the same weights with the same seed, and all gave one picture.
-- NULL: a sample without a digest says nothing. There is no NaN in text.
WITH moments AS (
    SELECT
        step,
        weights,
        count(DISTINCT prompt) AS prompts,
        count(DISTINCT digest) = 1 AS is_same,
        min(path) AS path
    FROM samples
    WHERE digest IS NOT NULL
    GROUP BY step, weights, seed
    HAVING count(DISTINCT prompt) >= $min_prompts
),
run AS (
    SELECT
        weights,
        count(*) FILTER (WHERE is_same) AS same,
        count(*) AS compared,
        arg_max(is_same, step) AS is_same_last,
        min(step) FILTER (WHERE is_same) AS first_step,
        max(step) AS last_step,
        max(prompts) AS prompts,
        arg_max(path, step) AS path
    FROM moments
    GROUP BY weights
)
SELECT
    'samples' AS where_kind,
    weights AS where_name,
    first_step,
    last_step,
    same / compared AS value,
    0.0 AS threshold,
    same / compared AS score,
    same,
    compared,
    prompts,
    coalesce(path, 'not kept') AS path
FROM run
WHERE is_same_last
