-- The captions with fewer than two tags beyond those that stay: one tag has only one order.
-- NULL: a sample that is not used, or whose caption cannot be read, does not count.
WITH plan AS (
    SELECT
        coalesce(
            arg_max(try_cast(value AS DOUBLE), coalesce(segment, 0)) FILTER (WHERE key = 'data.keep_tokens'), 0
        ) AS keep
    FROM config
),
captions AS (
    SELECT keep, count(*) AS captions, count(*) FILTER (WHERE tags - keep < 2) AS count
    FROM plan, data
    WHERE tags IS NOT NULL
    GROUP BY keep
)
SELECT
    'run' AS where_kind,
    'run' AS where_name,
    NULL AS first_step,
    NULL AS last_step,
    count / captions AS value,
    $max_share AS threshold,
    count / captions AS score,
    count,
    captions,
    keep
FROM captions
WHERE count / captions > $max_share
