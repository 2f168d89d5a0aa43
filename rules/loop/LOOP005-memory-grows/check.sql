-- Memory that goes on growing: the second half of the steps in five windows, of each the least (a peak that passes is
-- no growth), more in every window than in the one before, and in all by more than a share of what it was at half-time.
-- The process's memory and the accelerator's are asked apart, each process of several for itself. NULL: not measured
-- (there is no accelerator), no row. Memory is counted, so there is no NaN.
WITH measured AS (
    SELECT step, rank, 'main memory' AS memory, rss_bytes::DOUBLE AS bytes FROM steps WHERE rss_bytes > 0
    UNION ALL
    SELECT step, rank, 'the accelerator' AS memory, memory_bytes::DOUBLE AS bytes FROM steps WHERE memory_bytes > 0
),
halves AS (
    SELECT *, ntile(2) OVER (PARTITION BY rank, memory ORDER BY step) AS half FROM measured
),
windows AS (
    SELECT *, ntile(5) OVER (PARTITION BY rank, memory ORDER BY step) AS number FROM halves WHERE half = 2
),
least_of AS (
    SELECT rank, memory, number, min(bytes) AS bytes, min(step) AS first_step, max(step) AS last_step, count(*) AS steps
    FROM windows
    GROUP BY rank, memory, number
),
growing AS (
    SELECT *, bytes - lag(bytes) OVER (PARTITION BY rank, memory ORDER BY number) AS growth FROM least_of
),
trend AS (
    SELECT
        rank,
        memory,
        min(first_step) AS first_step,
        max(last_step) AS last_step,
        sum(steps) AS steps,
        bool_and(growth > 0) AS always,
        min(growth) AS least_growth,
        arg_max(bytes, number) - arg_min(bytes, number) AS gained,
        arg_min(bytes, number) AS before,
        -- From the first window's beginning to the last one's: four fifths of the half.
        0.8 * (max(last_step) - min(first_step)) AS span
    FROM growing
    GROUP BY rank, memory
)
SELECT
    'run' AS where_kind,
    memory AS where_name,
    first_step,
    last_step,
    gained / before AS value,
    $max_growth AS threshold,
    least(1.0, gained / before) AS score,
    rank AS process,
    gained / nullif(span, 0) / 1e6 AS mb_a_step,
    before / 1e6 AS mb_before
FROM trend
WHERE always AND gained / before > $max_growth
    -- Steady: a window of the trend holds at least a part of what it would in even growth.
    AND least_growth > $min_even * gained / 4
