-- What is written as the weights, beside the weights and their average right before: a checkpoint whose weights are the
-- average, while the weights were others.
-- The two are rightly equal where the average has made one update, or where nothing moved; what is written is then no
-- other than the weights. NULL: a digest that is missing gives no row. Digests have no NaN.
WITH saves AS (
    SELECT
        segment,
        step,
        rank,
        any_value(digest) FILTER (WHERE moment = 'saved' AND item = 'raw') AS written,
        any_value(digest) FILTER (WHERE moment = 'before_save' AND item = 'raw') AS raw,
        any_value(digest) FILTER (WHERE moment = 'before_save' AND item = 'ema') AS average
    FROM checksums
    GROUP BY ALL
),
swapped AS (
    SELECT step, bool_or(coalesce(written = average AND written <> raw, false)) AS hit
    FROM saves
    WHERE written IS NOT NULL
    GROUP BY step
)
SELECT
    'run' AS where_kind,
    'run' AS where_name,
    min(step) FILTER (WHERE hit) AS first_step,
    max(step) FILTER (WHERE hit) AS last_step,
    count(*) FILTER (WHERE hit) AS value,
    1.0 AS score,
    count(*) AS saves
FROM swapped
HAVING count(*) FILTER (WHERE hit) > 0
