-- What is left of the first copy: the product of the decays that the updates really used. Looks are `gap` steps apart,
-- and updates `every` steps, so a look's decay stands for gap / every updates.
-- The first update of diffusers' EMAModel copies the weights (decay 0): the product begins after it.
-- NULL and NaN: `NaN < 1` is false in DuckDB, so neither gives a row.
WITH every AS (
    SELECT coalesce(max(try_cast(value AS DOUBLE)) FILTER (WHERE key = 'ema.every'), 1) AS steps FROM config
),
looks AS (
    SELECT step, max(decay) AS decay, step - lag(step, 1, 0) OVER (ORDER BY step) AS gap
    FROM ema_steps
    WHERE decay > 0 AND decay < 1
    GROUP BY step
),
run AS (
    SELECT
        min(step) AS first_step,
        max(step) AS last_step,
        exp(sum(ln(decay) * gap / every.steps)) AS initial_weight,
        sum(gap / every.steps) AS updates,
        arg_max(decay, step) AS decay
    FROM looks, every
)
SELECT
    'run' AS where_kind,
    'run' AS where_name,
    first_step,
    last_step,
    initial_weight AS value,
    $max_initial_weight AS threshold,
    initial_weight AS score,
    decay,
    1 / (1 - decay) AS horizon,
    updates,
    round(greatest(0.5, 1 - 10 / updates), 4) AS fitting_decay
FROM run
WHERE initial_weight > $max_initial_weight
