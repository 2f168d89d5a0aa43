-- ‖θ − shadow‖ against ‖θ − θ₀‖, over all tensors, at the last look that recorded both.
-- NaN sorts above every number in DuckDB, so a norm that went non-finite has to be left out by name (SYM004 tells it).
WITH both_looked AS (
    SELECT max(e.step) AS step FROM ema_steps AS e JOIN tensor_steps AS t USING (step)
),
lag AS (
    SELECT sqrt(sum(lag_energy)) AS norm FROM ema_steps WHERE step = (SELECT step FROM both_looked)
),
travelled AS (
    SELECT sqrt(sum(distance_energy)) AS norm FROM tensor_steps WHERE step = (SELECT step FROM both_looked)
)
SELECT
    'run' AS where_kind,
    'run' AS where_name,
    1 AS first_step,
    both_looked.step AS last_step,
    lag.norm / travelled.norm AS value,
    $max_lag AS threshold,
    least(1.0, lag.norm / travelled.norm) AS score
FROM both_looked, lag, travelled
WHERE isfinite(lag.norm) AND isfinite(travelled.norm) AND travelled.norm > 0 AND lag.norm / travelled.norm > $max_lag
