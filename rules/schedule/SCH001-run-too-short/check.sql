-- How often an image was seen, and whether the held-out loss was still on its way down.
-- A short run whose curve flattened is no hit, and of a run that goes on from another's checkpoint the log has not all.
-- NaN sorts above every number in DuckDB, so a fall that is not finite has to be left out by name: no hit (SYM004).
-- NULL: losses that are not there are left out.
WITH seen AS (
    SELECT count(*) / count(DISTINCT sample) AS per_image, count(DISTINCT sample) AS images, max(step) AS steps,
        count(*) / max(step) AS samples_per_step, min(step) AS first_step
    FROM "order"
),
curve AS (
    SELECT
        arg_min(loss, step) AS first_loss,
        arg_max(loss, step) AS last_loss,
        arg_max(loss, step) FILTER (WHERE step <= (SELECT max(step) * 2 / 3 FROM evals)) AS earlier_loss,
        min(step) AS first_step
    FROM evals
    WHERE weights = 'raw' AND loss IS NOT NULL
),
fall AS (
    SELECT
        *,
        (first_loss - last_loss) / first_loss AS whole,
        (earlier_loss - last_loss) / nullif(first_loss - last_loss, 0) AS late
    FROM curve
)
SELECT
    'run' AS where_kind,
    'run' AS where_name,
    fall.first_step,
    seen.steps AS last_step,
    seen.per_image AS value,
    $min_seen AS threshold,
    1.0 - least(1.0, seen.steps / $enough_steps) AS score,
    seen.steps AS steps,
    CASE
        WHEN fall.whole < 0.005 THEN 'had not begun to fall'
        ELSE format('was still falling ({:.0f} % of its fall came in the last third)', 100 * fall.late)
    END AS curve,
    greatest($enough_steps, ceil($min_seen * seen.images / seen.samples_per_step))::INT AS enough,
    ceil(greatest($enough_steps * seen.samples_per_step / seen.images, $min_seen))::INT AS enough_epochs
FROM seen, fall
WHERE seen.first_step <= 1
    AND seen.per_image < $min_seen
    AND seen.steps < $enough_steps
    AND isfinite(fall.whole)
    AND (fall.whole BETWEEN -0.02 AND 0.005 OR (fall.whole > 0.005 AND fall.late >= $min_late_fall))
