-- Means of three evaluations in a row: the least of them against the last, of weights and of their average apart; and
-- the mean training loss over as many steps around both.
-- NaN: losses that are not finite are left out (SYM004 is their symptom). NULL: a draw count that nobody told is enough.
WITH points AS (
    SELECT weights, mode, step, avg(loss) AS loss, min(draws) AS draws
    FROM evals
    WHERE split = 'validation' AND isfinite(loss)
    GROUP BY weights, mode, step
),
smooth AS (
    SELECT
        weights,
        mode,
        step,
        draws,
        avg(loss) OVER three AS loss,
        min(step) OVER three AS begins,
        count(*) OVER three AS count
    FROM points
    WINDOW three AS (PARTITION BY weights, mode ORDER BY step ROWS BETWEEN 2 PRECEDING AND CURRENT ROW)
),
turns AS (
    SELECT
        weights,
        mode,
        min(draws) AS draws,
        min(loss) AS least,
        arg_min(step, loss) AS best_step,
        arg_min(begins, loss) AS best_begins,
        arg_max(loss, step) AS last,
        arg_max(begins, step) AS last_begins,
        max(step) AS last_step
    FROM smooth
    WHERE count = 3
    GROUP BY weights, mode
),
trained AS (
    SELECT
        turns.*,
        (SELECT avg(loss) FROM steps WHERE isfinite(loss) AND step > best_begins AND step <= best_step) AS train_before,
        (SELECT avg(loss) FROM steps WHERE isfinite(loss) AND step > last_begins AND step <= last_step) AS train_after
    FROM turns
)
SELECT
    'weights' AS where_kind,
    concat_ws(' ', weights, mode) AS where_name,
    best_step AS first_step,
    last_step,
    last / least - 1 AS value,
    $min_rise AS threshold,
    least(1.0, 4 * (last / least - 1)) AS score,
    best_step,
    least,
    last,
    draws AS pairs,
    1 - train_after / train_before AS train_fall
FROM trained
WHERE last / least - 1 > $min_rise
    AND 1 - train_after / train_before > $min_fall
    AND coalesce(draws, $min_draws) >= $min_draws
