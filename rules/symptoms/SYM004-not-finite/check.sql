-- Steps with a non-finite loss, or with a non-finite gradient that the optimizer really took: a GradScaler skips a step
-- whose scaled gradients overflow, and that is how it works.
-- NULL: a loss that was not recorded says nothing.
WITH bad AS (
    SELECT step FROM steps
    WHERE NOT isfinite(loss) OR (NOT isfinite(grad_norm) AND NOT coalesce(skipped, false))
)
SELECT
    'run' AS where_kind,
    'run' AS where_name,
    min(bad.step) AS first_step,
    max(bad.step) AS last_step,
    count(*) / (SELECT count(*) FROM steps) AS value,
    $max_share AS threshold,
    count(*) / (SELECT count(*) FROM steps) AS score,
    count(*) AS count,
    (SELECT count(*) FROM steps) AS steps
FROM bad
HAVING count(*) / (SELECT count(*) FROM steps) > $max_share
