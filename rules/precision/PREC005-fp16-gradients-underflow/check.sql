-- The share of exact zeros in each tensor's gradient, over looks and tensors, a tensor counting as much as any other:
-- so a table of tokens of which a batch uses a few is one of many. Only tensors count whose largest element was below
-- fp16's smallest normal number as fp16 had it, that is before unscaling and clipping: 1024 steps of its last grid,
-- 2^-24.
-- That it was fp16 is read off the numbers too: where zeros are, the largest element is a whole number of such steps.
-- Of a long run a hundred looks, evenly spread, tell it as well as all.
-- NaN: a look with a non-finite element is left out, and so are steps that were skipped. NULL: a tensor without a
-- gradient has no largest element and is left out; without clipping clip_coef is NULL and counts as 1.
WITH taken AS (
    SELECT step, max(loss_scale) AS loss_scale, min(clip_coef) AS clip_coef
    FROM steps
    WHERE NOT coalesce(skipped, false)
    GROUP BY step
),
looks AS (
    SELECT
        t.step,
        t.grad_zero_count / (t.grad_zero_count + t.nonzero_count) AS zeros,
        t.grad_absmax::DOUBLE / coalesce(c.clip_coef, 1) * coalesce(c.loss_scale, 1) * 2 ^ 24 AS largest,
        c.loss_scale
    FROM tensor_looks AS t JOIN taken AS c USING (step)
    WHERE isfinite(t.grad_absmax) AND t.nonfinite = 0 AND t.grad_zero_count + t.nonzero_count > 0
),
run AS (
    SELECT
        min(step) AS first_step,
        max(step) AS last_step,
        avg(CASE WHEN largest < 1024 THEN zeros ELSE 0 END) AS share,
        count(*) FILTER (WHERE zeros > 0.1 AND largest > 0 AND largest < 1024) AS small,
        count(*) FILTER (
            WHERE zeros > 0.1 AND largest > 0 AND largest < 1024 AND abs(largest - round(largest)) < 0.01
        ) AS on_grid,
        median(loss_scale) AS loss_scale
    FROM looks
)
SELECT
    'run' AS where_kind,
    'run' AS where_name,
    first_step,
    last_step,
    share AS value,
    $max_share AS threshold,
    least(1.0, share) AS score,
    loss_scale,
    on_grid / small AS grid_share,
    small AS looks_on_grid
FROM run
WHERE share > $max_share AND small >= 10 AND on_grid / small >= $min_on_grid
