-- The average's own count of its updates, beside what it was when it was saved. The decay warms up by this count.
-- A shadow that is not the saved one is another fault (EMA005), and its counter then begins anew with good reason.
-- NULL and what is no number: nothing to compare, no row. NaN cannot occur in a count; `NaN < x` is false.
WITH counters AS (
    SELECT
        segment,
        step,
        max(try_cast(saved AS DOUBLE)) FILTER (WHERE key = 'updates') AS saved,
        min(try_cast(loaded AS DOUBLE)) FILTER (WHERE key = 'updates') AS loaded,
        count(*) FILTER (WHERE key = 'shadow' AND status NOT IN ('match', 'dtype')) AS other_shadows
    FROM continuity
    WHERE item = 'ema'
        AND segment NOT IN (SELECT segment FROM resumes WHERE superseded)
    GROUP BY segment, step
),
decays AS (
    SELECT
        counters.segment,
        arg_max(looks.decay, looks.step) FILTER (WHERE looks.segment < counters.segment) AS decay_before,
        arg_min(looks.decay, looks.step) FILTER (WHERE looks.segment = counters.segment) AS decay_after
    FROM counters LEFT JOIN ema_steps AS looks ON looks.segment <= counters.segment AND isfinite(looks.decay)
    GROUP BY counters.segment
)
SELECT
    'run' AS where_kind,
    'run' AS where_name,
    step AS first_step,
    step AS last_step,
    loaded / saved AS value,
    $min_kept AS threshold,
    1.0 - loaded / saved AS score,
    saved::BIGINT AS saved,
    loaded::BIGINT AS loaded,
    decay_before,
    decay_after
FROM counters JOIN decays USING (segment)
WHERE saved > 0 AND loaded >= 0 AND loaded < $min_kept * saved AND other_shadows = 0
