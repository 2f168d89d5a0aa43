-- The captions that lose tokens. A run counts with the tokenizer; a plan has the fewest that there can be, so it may miss
-- some and invents none.
-- NULL: a sample that is not used, or whose caption cannot be read, does not count.
WITH plan AS (
    SELECT
        arg_max(try_cast(value AS DOUBLE), coalesce(segment, 0)) FILTER (WHERE key = 'data.max_tokens') AS max_tokens
    FROM config
),
captions AS (
    SELECT
        count(*) AS captions,
        count(*) FILTER (WHERE truncated > 0) AS count,
        max(truncated) AS most,
        max(tokens) AS longest
    FROM data
    WHERE truncated IS NOT NULL
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
    most,
    max_tokens AS limit,
    least(225, 75 * ceil(longest / 75))::INT AS enough
FROM plan, captions
WHERE captions > 0 AND count / captions > $max_share
