-- Mean over the run of the micro-batches' target variances, each by its samples, beside what it should be: 1 for noise;
-- for the velocity √ᾱ·noise − √(1 − ᾱ)·latents between 1 and the latents' variance.
-- Micro-batches that are not finite are left out (SYM004): NaN sorts above every number. NULL: not looked at.
WITH looks AS (
    SELECT
        step,
        samples,
        target_kind,
        target_var,
        CASE WHEN target_kind = 'v_prediction' THEN least(1, latent_std * latent_std) ELSE 1 END AS least_var,
        CASE WHEN target_kind = 'v_prediction' THEN greatest(1, latent_std * latent_std) ELSE 1 END AS most_var
    FROM batches
    WHERE isfinite(target_var) AND samples > 0 AND (target_kind <> 'v_prediction' OR isfinite(latent_std))
),
run AS (
    SELECT
        target_kind,
        sum(target_var * samples) / sum(samples) AS variance,
        sum(least_var * samples) / sum(samples) AS least_var,
        sum(most_var * samples) / sum(samples) AS most_var,
        min(step) AS first_step,
        max(step) AS last_step
    FROM looks
    GROUP BY target_kind
)
SELECT
    'run' AS where_kind,
    'run' AS where_name,
    first_step,
    last_step,
    variance AS value,
    CASE WHEN variance < least_var THEN $min_ratio * least_var ELSE $max_ratio * most_var END AS threshold,
    1 - least(variance / least_var, most_var / variance) AS score,
    CASE target_kind WHEN 'v_prediction' THEN 'the velocity' WHEN 'epsilon' THEN 'the noise' ELSE target_kind END AS target,
    least_var AS least,
    most_var AS most
FROM run
WHERE variance < $min_ratio * least_var OR variance > $max_ratio * most_var
