-- Sample images of the raw weights beside the one before of the same prompt and seed, taken after the weights had moved.
-- A picture that other prompts share at the same step is left out (SAM002).
-- NULL: the first picture has nothing before it. NaN: a distance of the weights that is not finite is not above the
-- threshold by name, so a run that went non-finite is no hit.
WITH moved AS (
    SELECT step, sqrt(sum(paired_distance_energy) / nullif(sum(paired_weight_energy), 0)) AS moved
    FROM tensor_steps
    GROUP BY step
),
alone AS (
    SELECT step, digest FROM samples WHERE weights = 'raw' GROUP BY step, digest HAVING count(DISTINCT prompt) = 1
),
pictures AS (
    SELECT *, lag(digest) OVER (PARTITION BY prompt, seed ORDER BY step) AS digest_before
    FROM samples
    WHERE weights = 'raw'
),
compared AS (
    SELECT
        p.step,
        p.prompt,
        p.distance = 0 AND p.digest = p.digest_before AS is_same,
        (SELECT arg_max(moved.moved, moved.step) FROM moved WHERE moved.step <= p.step) AS moved
    FROM pictures AS p JOIN alone USING (step, digest)
    WHERE p.distance IS NOT NULL AND p.digest_before IS NOT NULL
),
counted AS (
    SELECT * FROM compared WHERE isfinite(moved) AND moved >= $min_moved
),
run AS (
    SELECT
        count(*) FILTER (WHERE is_same) AS same,
        count(*) AS compared,
        min(step) AS first_step,
        max(step) AS last_step,
        max(moved) AS moved,
        min(prompt) AS prompt
    FROM counted
)
SELECT
    'run' AS where_kind,
    'run' AS where_name,
    first_step,
    last_step,
    same / compared AS value,
    $min_share AS threshold,
    same / compared AS score,
    same,
    compared,
    prompt,
    moved
FROM run
WHERE same / nullif(compared, 0) >= $min_share
