-- Pictures that are trained on and were never visited, once there were visits enough for several passes over all of
-- them. Fewer visits than that: no row, since nothing can be said yet. Neither table has NaN. Without a split a picture
-- was left out from the beginning, and said to be.
WITH train AS (
    SELECT sample, path, bucket, greatest(coalesce(repeats, 1), 1) AS repeats
    FROM data
    WHERE split = 'train' AND dropped IS NULL
),
visits AS (
    SELECT sample, count(*) AS visits FROM "order" GROUP BY sample
),
looked AS (
    SELECT train.*, coalesce(visits.visits, 0) AS visits FROM train LEFT JOIN visits USING (sample)
),
buckets AS (
    SELECT bucket, count(*) AS pictures FROM train GROUP BY bucket
),
run AS (
    SELECT
        count(*) FILTER (WHERE visits = 0) / count(*) AS share,
        count(*) FILTER (WHERE visits = 0) AS unseen,
        count(*) AS pictures,
        min(path) FILTER (WHERE visits = 0) AS example,
        max(buckets.pictures) FILTER (WHERE visits = 0) AS largest_bucket,
        sum(visits) / sum(repeats) AS passes
    FROM looked LEFT JOIN buckets USING (bucket)
),
batches AS (
    SELECT coalesce(max(samples // greatest(micro_steps, 1)), 1) AS batch_size FROM steps
)
SELECT
    'run' AS where_kind,
    'run' AS where_name,
    (SELECT min(step) FROM "order") AS first_step,
    (SELECT max(step) FROM "order") AS last_step,
    share AS value,
    $max_share AS threshold,
    share AS score,
    unseen,
    pictures,
    example,
    coalesce(largest_bucket, 0) AS largest_bucket,
    passes,
    batches.batch_size
FROM run, batches
WHERE passes >= $min_passes AND share > $max_share
