-- The factor in effect and what the pairs add, at the last look.
-- A low scale that a higher lr made up for is no hit.
-- NaN sorts above every number, so `NaN < x` is false and a run that went non-finite no hit. NULL: no adapters, no row.
WITH ends AS (
    SELECT
        max(step) AS step,
        sqrt(sum(delta_energy)) / nullif(sqrt(sum(base_energy)), 0) AS delta,
        max(scale_max) AS scale,
        max(rank_max)::DOUBLE AS rank
    FROM adapter_steps
    WHERE step = (SELECT max(step) FROM adapter_steps)
)
SELECT
    'run' AS where_kind,
    'run' AS where_name,
    1 AS first_step,
    step AS last_step,
    delta AS value,
    $min_delta AS threshold,
    1.0 - delta / $min_delta AS score,
    scale,
    rank,
    (SELECT max(alpha) FROM adapter_ends) AS alpha
FROM ends
WHERE scale < $min_scale AND delta < $min_delta
