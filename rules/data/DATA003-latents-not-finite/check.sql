-- Micro-batches whose latents' mean is not finite, and the pictures that were in such ones alone.
-- NaN and Inf are what is looked for. NULL: not looked at; without `order` no picture can be named.
WITH looks AS (
    SELECT step, rank, position, samples, nonfinite, NOT isfinite(latent_mean) AS is_bad
    FROM batches
    WHERE latent_mean IS NOT NULL
),
seen AS (
    SELECT o.sample, bool_and(looks.is_bad) AS only_bad
    FROM looks JOIN "order" AS o USING (rank, position)
    GROUP BY o.sample
),
named AS (
    SELECT
        count(*) AS pictures,
        list(coalesce(data.path, 'sample ' || seen.sample) ORDER BY seen.sample)[:5] AS paths
    FROM seen LEFT JOIN data USING (sample)
    WHERE only_bad
),
run AS (
    SELECT
        count(*) FILTER (WHERE is_bad) AS bad,
        count(*) AS looks,
        min(step) FILTER (WHERE is_bad) AS first_step,
        max(step) FILTER (WHERE is_bad) AS last_step,
        arg_min(nonfinite, step) FILTER (WHERE is_bad) AS elements
    FROM looks
)
SELECT
    'run' AS where_kind,
    'run' AS where_name,
    first_step,
    last_step,
    bad / looks AS value,
    $max_share AS threshold,
    1.0 AS score,
    bad,
    looks,
    elements,
    CASE
        WHEN named.pictures = 0 THEN 'which pictures is not known'
        ELSE array_to_string(paths, ', ') || CASE WHEN named.pictures > 5 THEN ' …' ELSE '' END
    END AS pictures
FROM run, named
WHERE bad / nullif(looks, 0) > $max_share
