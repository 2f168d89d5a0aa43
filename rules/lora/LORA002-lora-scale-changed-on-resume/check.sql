-- The factor in effect in front of each pair, alpha / rank, beside the one that it was saved with.
-- NULL and what is no number: a pair that is new or gone has nothing to compare, no row. NaN is told by its own text and
-- is no number here. A saved factor of 0 was a switched-off adapter, and has no ratio.
WITH scales AS (
    SELECT segment, step, param, try_cast(saved AS DOUBLE) AS saved, try_cast(loaded AS DOUBLE) AS loaded
    FROM continuity
    WHERE item = 'lora' AND key = 'scale'
        AND segment NOT IN (SELECT segment FROM resumes WHERE superseded)
),
changes AS (
    SELECT
        segment,
        step,
        count(DISTINCT param) AS modules,
        count(DISTINCT param) FILTER (WHERE abs(loaded / saved - 1) > $max_change) AS changed,
        arg_max(param, abs(loaded / saved - 1)) AS example,
        arg_max(saved, abs(loaded / saved - 1)) AS saved,
        arg_max(loaded, abs(loaded / saved - 1)) AS loaded,
        max(abs(loaded / saved - 1)) AS change,
        -- A loader that knows no alpha takes the rank for it: where alpha is the rank, it changes nothing.
        bool_and(abs(loaded - 1) < 1e-6) AS alpha_taken_for_rank
    FROM scales
    WHERE saved <> 0 AND isfinite(saved) AND isfinite(loaded)
    GROUP BY segment, step
)
SELECT
    'run' AS where_kind,
    'run' AS where_name,
    step AS first_step,
    step AS last_step,
    change AS value,
    $max_change AS threshold,
    least(1.0, change) AS score,
    saved,
    loaded,
    loaded / saved AS ratio,
    changed,
    modules,
    example,
    CASE WHEN alpha_taken_for_rank THEN (SELECT max(rank_max)::DOUBLE FROM adapter_steps) END AS rank
FROM changes
WHERE change > $max_change
