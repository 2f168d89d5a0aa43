-- Root mean square over the run of the micro-batches' standard deviations, each by its samples.
-- Micro-batches that are not finite are left out (SYM004): NaN sorts above every number. NULL: not looked at.
WITH run AS (
    SELECT
        sqrt(sum(latent_std * latent_std * samples) / sum(samples)) AS std,
        min(latent_std) AS least,
        max(latent_std) AS most,
        min(step) AS first_step,
        max(step) AS last_step
    FROM batches
    WHERE isfinite(latent_std) AND samples > 0
)
SELECT
    'run' AS where_kind,
    'run' AS where_name,
    first_step,
    last_step,
    std AS value,
    CASE WHEN std < $min_std THEN $min_std ELSE $max_std END AS threshold,
    1 - least(std, 1 / greatest(std, 1e-9)) AS score,
    least AS lowest,
    most AS highest
FROM run
WHERE std < $min_std OR std > $max_std
