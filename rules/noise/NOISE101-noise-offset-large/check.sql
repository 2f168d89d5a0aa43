-- What is common to all pixels of a channel, in standard deviations: in a run as measured in the noise of the target,
-- before it as configured. White noise has 1 / pixels of it by chance, which is taken off.
-- NULL and NaN: such batches are left out; none at all is a plan.
WITH plan AS (
    SELECT arg_max(try_cast(value AS DOUBLE), coalesce(segment, 0)) FILTER (WHERE key = 'noise.offset') AS asked
    FROM config
),
measured AS (
    SELECT
        min(step) AS first_step,
        max(step) AS last_step,
        -- `greatest` passes over a NULL.
        CASE WHEN count(*) > 0 THEN sqrt(greatest(avg(noise_channel_mean_var - 1.0 / latent_pixels), 0)) END AS shift
    FROM batches
    WHERE isfinite(noise_channel_mean_var)
),
noise AS (
    SELECT first_step, last_step, asked, coalesce(shift, asked) AS strength FROM plan, measured
)
SELECT
    'run' AS where_kind,
    'run' AS where_name,
    first_step,
    last_step,
    strength AS value,
    $max_offset AS threshold,
    1.0 - $max_offset / strength AS score,
    asked
FROM noise
WHERE strength > $max_offset
