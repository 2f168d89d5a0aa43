-- The configured discount, where more than one level is added; in a run only if channels as a whole were shifted by it.
-- The first level has the size of the latent and is white, so one iteration makes nothing coarse.
-- NULL and NaN: such batches are left out; none at all is a plan.
WITH plan AS (
    SELECT
        arg_max(try_cast(value AS DOUBLE), coalesce(segment, 0))
            FILTER (WHERE key = 'noise.multires_discount') AS discount,
        arg_max(try_cast(value AS DOUBLE), coalesce(segment, 0))
            FILTER (WHERE key = 'noise.multires_iterations') AS iterations
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
)
SELECT
    'run' AS where_kind,
    'run' AS where_name,
    first_step,
    last_step,
    discount AS value,
    $max_discount AS threshold,
    discount AS score,
    iterations,
    CASE WHEN shift IS NULL THEN '' ELSE format(' (channels are shifted by {:.2f})', shift) END AS measured
FROM plan, measured
WHERE discount > $max_discount AND iterations >= 2 AND coalesce(shift > $min_shift, true)
