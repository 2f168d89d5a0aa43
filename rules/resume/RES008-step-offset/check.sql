-- Counters that go on from another number than the one that was saved: compared by name right after the resume, and the
-- optimizer steps also over the steps themselves, where step − optimizer steps − skipped steps stays what it was.
-- A stop in the middle of a step may lose its gradients, and the step then begins again with its first micro-batch: a
-- count of micro-batches may be behind by less than a step has.
-- NaN and NULL: numbers come as JSON text, and what is no number is NULL, which gives no row.
WITH compared AS (
    SELECT
        segment,
        key,
        min(step) AS start,
        min(try_cast(saved AS DOUBLE)) AS saved,
        min(try_cast(loaded AS DOUBLE)) AS loaded
    FROM continuity
    WHERE item = 'counter'
    GROUP BY segment, key
),
saved_steps AS (
    SELECT segment, saved FROM compared WHERE key = 'step'
),
wrong AS (
    SELECT segment, key, saved, loaded FROM compared
    WHERE loaded <> saved
        AND (key <> 'micro_step' OR abs(loaded - saved) >= coalesce((SELECT max(micro_steps) FROM steps), 1))
),
counted AS (
    SELECT
        segment,
        step,
        optimizer_steps,
        step - optimizer_steps - sum(CASE WHEN skipped THEN 1 ELSE 0 END) OVER (ORDER BY segment, step) AS apart
    FROM steps
    WHERE rank = (SELECT min(rank) FROM steps) AND optimizer_steps IS NOT NULL
),
ends AS (
    SELECT
        segment,
        min(step) AS first_step,
        max(step) AS last_step,
        arg_min(apart, step) AS begins,
        arg_max(apart, step) AS ends,
        arg_min(optimizer_steps, step) AS first_count
    FROM counted
    GROUP BY segment
),
drifted AS (
    SELECT
        segment,
        'optimizer_steps' AS key,
        first_count - 1 + begins - lag(ends) OVER (ORDER BY segment) AS saved,
        first_count - 1 AS loaded
    FROM ends
    QUALIFY begins <> lag(ends) OVER (ORDER BY segment)
),
found AS (
    SELECT * FROM wrong
    UNION ALL
    SELECT * FROM drifted WHERE segment NOT IN (SELECT segment FROM wrong)
)
SELECT
    'counter' AS where_kind,
    key AS where_name,
    first_step,
    last_step,
    loaded - found.saved AS value,
    NULL::DOUBLE AS threshold,
    least(1.0, abs(loaded - found.saved) / greatest(abs(loaded), abs(found.saved))) AS score,
    key AS counter,
    found.saved AS saved,
    loaded,
    coalesce(saved_steps.saved, first_step - 1) AS resumed_at
FROM found JOIN ends USING (segment) LEFT JOIN saved_steps USING (segment)
