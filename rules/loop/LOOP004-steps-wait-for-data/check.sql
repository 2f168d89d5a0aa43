-- The share of a step's time that its batches took, in the middle of all steps but the first: that one warms up. An
-- inpainting model's masks are drawn anew for each visit, and only then can its masked pictures be encoded: that is no
-- waiting that could be saved. NaN and NULL, and steps that took no time, are left out.
WITH shares AS (
    SELECT
        step,
        data_seconds / nullif(seconds, 0) AS share,
        (forward_seconds + backward_seconds) / nullif(seconds, 0) AS model_share,
        seconds,
        data_seconds
    FROM steps
    WHERE step > (SELECT min(step) FROM steps) AND isfinite(data_seconds) AND isfinite(seconds)
),
run AS (
    SELECT
        min(step) AS first_step,
        max(step) AS last_step,
        median(share) AS share,
        median(model_share) AS model_share,
        sum(data_seconds) AS waited,
        sum(seconds) AS total
    FROM shares
)
SELECT
    'run' AS where_kind,
    'run' AS where_name,
    first_step,
    last_step,
    share AS value,
    $max_share AS threshold,
    least(1.0, share) AS score,
    coalesce(model_share, 0) AS model_share,
    waited,
    total
FROM run
WHERE share > $max_share
    AND NOT EXISTS (SELECT 1 FROM batches WHERE mask_area IS NOT NULL)
