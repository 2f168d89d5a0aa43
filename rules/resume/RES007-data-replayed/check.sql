-- Epochs that a resume cut in two, over what is left of the order once superseded steps are taken away: samples seen
-- before and after it more often than an epoch uses them, and, of an epoch that is over, samples that were never seen.
-- A sampler that is spread over ranks fills its last batch with samples again: as many as there are other ranks are let
-- pass. Where the count of batches itself was lost, RES008 says so.
-- NULL: rows without an epoch are left out; a sample that `data` does not know is used once.
WITH cuts AS (
    SELECT segment, min(step) - 1 AS resumed_at FROM "order"
    WHERE segment > (SELECT min(segment) FROM "order")
        AND segment NOT IN (
            SELECT segment FROM continuity
            WHERE item = 'counter' AND key = 'micro_step' AND try_cast(loaded AS DOUBLE) <> try_cast(saved AS DOUBLE)
        )
    GROUP BY segment
),
ranks AS (
    SELECT count(DISTINCT rank) AS world FROM "order"
),
uses AS (
    SELECT
        cuts.segment,
        epoch,
        sample,
        count(*) FILTER (WHERE seen.segment < cuts.segment) AS before,
        count(*) FILTER (WHERE seen.segment >= cuts.segment) AS after
    FROM cuts, "order" AS seen
    WHERE epoch IS NOT NULL
    GROUP BY cuts.segment, epoch, sample
),
replayed AS (
    SELECT uses.segment, epoch, count(*) AS samples
    FROM uses LEFT JOIN data USING (sample)
    WHERE before > 0 AND after > 0 AND before + after > coalesce(repeats, 1)
    GROUP BY uses.segment, epoch
),
-- The epoch that was under way; it is over if a later one was begun.
under_way AS (
    SELECT cuts.segment, arg_max(epoch, (seen.segment, seen.step, seen.position)) AS epoch
    FROM cuts JOIN "order" AS seen ON seen.segment < cuts.segment
    WHERE epoch IS NOT NULL
    GROUP BY cuts.segment
),
missed AS (
    SELECT under_way.segment, under_way.epoch, count(*) AS samples
    FROM under_way JOIN data ON data.split = 'train' AND data.dropped IS NULL
    WHERE EXISTS (SELECT 1 FROM "order" AS later WHERE later.segment >= under_way.segment AND later.epoch > under_way.epoch)
        AND NOT EXISTS (SELECT 1 FROM "order" AS seen WHERE seen.epoch = under_way.epoch AND seen.sample = data.sample)
    GROUP BY under_way.segment, under_way.epoch
),
sizes AS (
    SELECT count(*) FILTER (WHERE split = 'train' AND dropped IS NULL) AS samples FROM data
),
epochs AS (
    SELECT
        coalesce(replayed.segment, missed.segment) AS segment,
        coalesce(replayed.epoch, missed.epoch) AS epoch,
        coalesce(replayed.samples, 0) AS again,
        coalesce(missed.samples, 0) AS never,
        greatest(sizes.samples, coalesce(replayed.samples, 0)) AS samples
    FROM replayed FULL JOIN missed ON replayed.segment = missed.segment AND replayed.epoch = missed.epoch CROSS JOIN sizes
),
steps AS (
    SELECT epochs.segment, epochs.epoch, min(seen.step) AS first_step, max(seen.step) AS last_step
    FROM epochs JOIN "order" AS seen ON seen.segment >= epochs.segment
        AND (seen.epoch = epochs.epoch OR epochs.again = 0)
    GROUP BY epochs.segment, epochs.epoch
)
SELECT
    'epoch' AS where_kind,
    epoch AS where_name,
    first_step,
    last_step,
    greatest(again, never) / samples AS value,
    $max_share AS threshold,
    least(1.0, greatest(again, never) / samples) AS score,
    resumed_at,
    epoch,
    again,
    never,
    samples
FROM epochs JOIN steps USING (segment, epoch) JOIN cuts USING (segment), ranks
WHERE greatest(again, never) / samples > $max_share AND greatest(again, never) > world - 1
