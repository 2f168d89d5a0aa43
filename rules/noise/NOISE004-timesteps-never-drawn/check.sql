-- Tenths of the range that was asked for into which no sample fell, though even draws would have put some there.
-- A tenth that lies in the range in part counts as that part. NULL: no range is known (a watched loop), no row.
WITH asked AS (
    SELECT
        max(try_cast(value AS DOUBLE)) FILTER (WHERE key = 'noise.min_timestep') AS low,
        max(try_cast(value AS DOUBLE)) FILTER (WHERE key = 'noise.max_timestep') AS high
    FROM config
),
drawn AS (
    SELECT bin, sum(count) AS count, min(step) AS first_step, max(step) AS last_step FROM losses GROUP BY bin
),
whole AS (
    SELECT sum(count) AS samples, min(first_step) AS first_step, max(last_step) AS last_step FROM drawn
),
tenths AS (
    SELECT
        tenth AS bin,
        coalesce(drawn.count, 0) AS count,
        greatest(0, least(high, 100 * tenth + 100) - greatest(low, 100 * tenth)) / nullif(high - low, 0) AS part
    FROM range(10) AS tenths (tenth) LEFT JOIN drawn ON drawn.bin = tenth, asked
),
missing AS (
    SELECT
        sum(part) FILTER (WHERE tenths.count = 0 AND part * samples >= $min_expected) AS share,
        list(format('{} to {}', 100 * bin, 100 * bin + 99) ORDER BY bin)
            FILTER (WHERE tenths.count = 0 AND part * samples >= $min_expected) AS missing,
        coalesce(sum(tenths.count) FILTER (WHERE part = 0), 0) AS outside
    FROM tenths, whole
)
SELECT
    'run' AS where_kind,
    'run' AS where_name,
    first_step,
    last_step,
    share AS value,
    $max_share AS threshold,
    least(1.0, share) AS score,
    low::BIGINT AS low,
    high::BIGINT AS high,
    samples,
    array_to_string(missing.missing, ', ') AS missing,
    outside
FROM missing, whole, asked
WHERE share > $max_share
