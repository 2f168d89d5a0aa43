-- The share of each tenth of the timesteps in what is minimised and in the plain loss, over the whole run.
-- Not finite: in a sum NaN and Inf stay, so only steps whose plain losses are finite count; where the weight is not
-- finite, its tenth has all of the sum. NULL: no weights, no row of `batches`, no hit.
WITH tenths AS (
    SELECT
        bin,
        sum(loss * count) AS plain,
        sum(weighted_loss * count) AS weighted,
        min(step) AS first_step,
        max(step) AS last_step
    FROM losses
    WHERE isfinite(loss)
    GROUP BY bin
),
shares AS (
    SELECT
        bin,
        plain / nullif(sum(plain) OVER (), 0) AS plain_share,
        CASE
            WHEN NOT isfinite(weighted) THEN 1.0
            ELSE weighted / nullif(sum(weighted) FILTER (WHERE isfinite(weighted)) OVER (), 0)
        END AS share,
        min(first_step) OVER () AS first_step,
        max(last_step) OVER () AS last_step
    FROM tenths
),
largest AS (
    SELECT max(weight_max) AS weight FROM batches
)
SELECT
    'run' AS where_kind,
    format('timesteps of tenth {}', bin) AS where_name,
    first_step,
    last_step,
    share AS value,
    $max_share AS threshold,
    share AS score,
    CASE bin WHEN 0 THEN 'the least noisy' WHEN 9 THEN 'the noisiest' ELSE format('the {}th from the least noisy', bin + 1) END
        AS tenth,
    plain_share,
    weight
FROM shares, largest
WHERE share > $max_share AND share > $min_gain * plain_share AND weight > $max_weight
