-- Share of the elements with √v̂ < 10·eps, all looks of the second half of the run, each tensor by its size.
-- NaN: v̂ that went non-finite compares as false in the probe, so it counts as not dominated. NULL: no second moment.
WITH looks AS (
    SELECT t.step, t.eps_dominated_fraction::DOUBLE * p.numel AS dominated, p.numel
    FROM tensors AS t JOIN params AS p USING (param)
    WHERE isfinite(t.eps_dominated_fraction) AND t.step > (SELECT max(step) / 2 FROM tensors)
),
run AS (
    SELECT min(step) AS first_step, max(step) AS last_step, sum(dominated) / sum(numel) AS share
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
