-- Samples of a forward pass against those asked for: in a run as counted, before it as planned.
-- NULL: no plan, no row.
WITH plan AS (
    SELECT
        arg_max(try_cast(value AS DOUBLE), coalesce(segment, 0)) FILTER (WHERE key = 'train.batch_size') AS asked,
        arg_max(try_cast(value AS DOUBLE), coalesce(segment, 0)) FILTER (WHERE key = 'plan.samples')
            * arg_max(try_cast(value AS DOUBLE), coalesce(segment, 0)) FILTER (WHERE key = 'data.repeats') AS visits,
        arg_max(try_cast(value AS DOUBLE), coalesce(segment, 0)) FILTER (WHERE key = 'plan.batches_per_epoch')
            AS batches,
        arg_max(value, coalesce(segment, 0)) FILTER (WHERE key = 'data.buckets.enabled') = 'true' AS has_buckets
    FROM config
),
counted AS (
    SELECT min(step) AS first_step, max(step) AS last_step, sum(samples) / sum(micro_steps) AS typical
    FROM steps
    WHERE samples IS NOT NULL AND micro_steps > 0
),
batches AS (
    SELECT first_step, last_step, asked, visits, has_buckets, coalesce(typical, visits / batches) AS typical
    FROM plan, counted
)
SELECT
    'run' AS where_kind,
    'run' AS where_name,
    first_step,
    last_step,
    typical / asked AS value,
    $min_fill AS threshold,
    1.0 - typical / asked AS score,
    typical,
    asked,
    CASE WHEN has_buckets AND visits >= asked THEN 'a batch has pictures of one bucket only, and most have few'
        ELSE 'an epoch has no more' END AS why,
    greatest(1, round(typical))::INT AS filled
FROM batches
WHERE typical / asked < $min_fill
