-- Each sample's noise by its digest: how many of the noises that were looked at had been used before.
-- The same place in the same micro-batch is a replay of it (RES007), and no new draw.
-- NULL digests give no rows; a digest is never NaN.
WITH places AS (
    SELECT
        step,
        rank,
        position,
        unnest(string_split(noise_digest, ' ')) AS digest,
        generate_subscripts(string_split(noise_digest, ' '), 1) AS place
    FROM batches
),
draws AS (
    SELECT rank, position, place, digest, min(step) AS step
    FROM places
    GROUP BY rank, position, place, digest
),
run AS (
    SELECT
        count(*) AS draws,
        count(DISTINCT digest) AS different,
        min(step) AS first_step,
        max(step) AS last_step
    FROM draws
)
SELECT
    'run' AS where_kind,
    'run' AS where_name,
    first_step,
    last_step,
    1 - different / draws AS value,
    $max_share AS threshold,
    1 - different / draws AS score,
    draws,
    different
FROM run
WHERE 1 - different / draws > $max_share
