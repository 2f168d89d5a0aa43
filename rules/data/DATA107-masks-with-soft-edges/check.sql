-- The share of mask elements that are neither 0 nor 1 in all micro-batches that were looked at. NULL: the model takes no
-- mask, or nobody looked. It is a count, so there is no NaN.
WITH run AS (
    SELECT
        sum(mask_nonbinary) / sum(latent_pixels * samples) AS share,
        sum(mask_area * samples) / sum(samples) AS area,
        min(step) FILTER (WHERE mask_nonbinary > 0) AS first_step,
        max(step) FILTER (WHERE mask_nonbinary > 0) AS last_step
    FROM batches
    WHERE mask_nonbinary IS NOT NULL AND latent_pixels * samples > 0
)
SELECT
    'run' AS where_kind,
    'run' AS where_name,
    first_step,
    last_step,
    share AS value,
    $max_share AS threshold,
    least(1.0, share) AS score,
    area
FROM run
WHERE share > $max_share
