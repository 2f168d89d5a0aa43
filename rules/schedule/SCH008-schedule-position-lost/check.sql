-- Where the schedule went on after each resume, if that is neither where it was saved nor where it was to go on, and
-- what that makes of the lr, as a share of its base: at once (the second step; the first may still use the loaded lr), or
-- by an offset that counts in a schedule that moves.
-- NaN and NULL: numbers come as JSON text, and what is no number is NULL, which gives no row; so does a base lr of 0.
WITH positions AS (
    SELECT
        segment,
        min(step) AS start,
        max(try_cast(saved AS DOUBLE)) FILTER (WHERE key = 'last_epoch') AS saved_position,
        max(try_cast(loaded AS DOUBLE)) FILTER (WHERE key = 'last_epoch') AS position,
        max(try_cast(asked AS DOUBLE)) FILTER (WHERE key = 'last_epoch') AS asked_position,
        max(try_cast(loaded AS DOUBLE)) FILTER (WHERE key = 'steps') AS length
    FROM continuity
    WHERE item = 'scheduler' AND param IS NULL
    GROUP BY segment
),
asked AS (
    SELECT
        segment,
        param AS name,
        max(try_cast(asked AS DOUBLE)) FILTER (WHERE item = 'group' AND key = 'lr')
            / nullif(max(try_cast(asked AS DOUBLE)) FILTER (WHERE item = 'scheduler' AND key = 'base_lr'), 0) AS share
    FROM continuity
    GROUP BY segment, param
),
rates AS (
    SELECT
        groups.segment,
        coalesce(groups.name, 'group ' || groups."group") AS name,
        groups.step,
        max(lr) AS lr,
        max(lr / nullif(base_lr, 0)) AS share
    FROM groups JOIN positions ON groups.segment = positions.segment AND groups.step > positions.start
    WHERE isfinite(lr) AND isfinite(base_lr)
    GROUP BY ALL
),
after AS (
    SELECT
        segment,
        name,
        max(step) AS last_step,
        min_by(lr, step, 2)[-1] AS lr,
        min_by(share, step, 2)[-1] AS share,
        max(share) - min(share) AS moves
    FROM rates
    GROUP BY segment, name
),
measured AS (
    SELECT
        positions.*,
        after.name,
        after.last_step,
        after.lr,
        after.lr / nullif(after.share, 0) * asked.share AS asked_lr,
        greatest(
            abs(after.share - asked.share),
            CASE WHEN after.moves > $max_error THEN abs(position - asked_position) / nullif(length, 0) ELSE 0 END
        ) AS error
    FROM positions JOIN after USING (segment) JOIN asked ON asked.segment = after.segment AND asked.name = after.name
    WHERE position <> asked_position AND position <> saved_position
)
SELECT
    'group' AS where_kind,
    name AS where_name,
    start AS first_step,
    last_step,
    error AS value,
    $max_error AS threshold,
    least(1.0, error) AS score,
    position,
    asked_position,
    lr,
    asked_lr
FROM measured
WHERE error > $max_error
