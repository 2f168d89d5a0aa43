-- How often the schedule moved on for each step that the optimizer made. A schedule that moves too often is found where
-- the lr changed by it, one that moves too seldom where it is not constant by design.
-- The first row of a segment has one step behind it already, so differences are taken, segment by segment.
-- Both are counted, so there is no NaN. NULL: no schedule, no row. A base lr of 0 changes nothing: no hit.
WITH counted AS (
    SELECT g.segment, g.step, max(g.scheduler_step) AS position, max(s.optimizer_steps) AS made
    FROM groups AS g JOIN steps AS s ON s.step = g.step AND s.segment = g.segment
    WHERE g.scheduler_step IS NOT NULL AND s.optimizer_steps IS NOT NULL
    GROUP BY ALL
),
segments AS (
    SELECT
        segment,
        min(step) AS first_step,
        max(step) AS last_step,
        max(position) - min(position) AS moves,
        max(made) - min(made) AS made
    FROM counted
    GROUP BY segment
),
run AS (
    SELECT
        min(first_step) AS first_step,
        max(last_step) AS last_step,
        sum(moves)::DOUBLE AS moves,
        sum(made)::DOUBLE AS made
    FROM segments
),
rates AS (
    SELECT
        (max(lr) - min(lr)) / nullif(max(base_lr), 0) AS change,
        arg_max(lr, step) AS last_lr,
        max(scheduler_type) AS scheduler
    FROM groups
    WHERE isfinite(lr) AND isfinite(base_lr)
),
asked AS (
    SELECT arg_max(value, coalesce(segment, 0)) AS shape FROM config WHERE key = 'scheduler.type'
),
batches AS (
    SELECT avg(micro_steps) AS micro_steps FROM steps
)
SELECT
    'run' AS where_kind,
    'run' AS where_name,
    first_step,
    last_step,
    moves / made AS value,
    $max_error AS threshold,
    1.0 - least(moves / made, made / greatest(moves, 1)) AS score,
    moves,
    made,
    scheduler,
    shape,
    last_lr,
    coalesce(micro_steps, 1) AS micro_steps
FROM run, rates, asked, batches
WHERE made > 0
    AND abs(moves / made - 1) > $max_error
    AND CASE WHEN moves > made THEN change > $max_error ELSE shape <> 'constant' END
