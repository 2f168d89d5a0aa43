-- Share of the elements with √v̂ < 10·eps, all looks of the second half of the run, each tensor by its size.
-- NaN: v̂ that went non-finite compares as false in the probe, so it counts as not dominated. NULL: no second moment.
WITH looks AS (
    SELECT
        t.finite_eps_first_step AS first_step,
        t.finite_eps_last_step AS last_step,
        t.finite_eps_dominated_sum * p.numel AS dominated,
        t.finite_eps_looks * p.numel AS numel
    FROM tensor_windows AS t JOIN params AS p USING (param)
    WHERE t.first_step > (SELECT max(last_step) / 2 FROM tensor_windows)
),
run AS (
    SELECT min(first_step) AS first_step, max(last_step) AS last_step, sum(dominated) / nullif(sum(numel), 0) AS share
    FROM looks
)
SELECT
    'run' AS where_kind,
    'run' AS where_name,
    first_step,
    last_step,
    share AS value,
    $max_share AS threshold,
    share AS score,
    (SELECT max(eps) FROM groups) AS eps
FROM run
WHERE share > $max_share
