"""The signals that the gate reads off a run, as SQL over the log: one value for each step.

A signal `by_step` is known at every step and kept as means over bins of steps; the others are known at looks, which
differ between runs, and are compared at the looks that all runs have in common. Judges nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Signal:
    """`sql` gives the columns place, step, value and weight: one row for each place and step, NULL = unknown.

    `column` is the column of the log whose absence explains that of the signal.
    """

    name: str
    column: str
    sql: str
    by_step: bool = False
    pooled: Literal["mean", "min"] = "mean"
    """What a bin of steps has."""


LOOKS = "component_looks"
MAKE_LOOKS = f"""
    CREATE TEMP TABLE {LOOKS} AS
    WITH component AS (
        SELECT param,
            any_value(CASE WHEN component LIKE 'text_encoder%' THEN 'text encoder' ELSE component END) AS place
        FROM params GROUP BY param
    )
    SELECT coalesce(place, 'model') AS place, step,
        sum(grad_norm::DOUBLE * grad_norm::DOUBLE) AS gradient,
        sum(update_norm::DOUBLE * update_norm::DOUBLE) AS moved,
        sum(distance_from_start::DOUBLE * distance_from_start::DOUBLE) AS distance,
        sum(delivered::DOUBLE * intended_norm::DOUBLE * intended_norm::DOUBLE) AS delivered,
        sum(intended_norm::DOUBLE * intended_norm::DOUBLE) FILTER (WHERE delivered IS NOT NULL) AS intended
    FROM tensors LEFT JOIN component USING (param) GROUP BY 1, 2"""  # noqa: S608 (the text is ours)
"""Energies of a component's tensors at a look, in one pass; SDXL's two text encoders are one component."""

_RANGE = "CASE WHEN bin <= 2 THEN 'low noise' WHEN bin <= 6 THEN 'middle noise' ELSE 'high noise' END"
"""Of the ten bins of timesteps: single ones have too few samples in a short run."""


def _looks(value: str) -> str:
    return f"SELECT place, step, {value} AS value, NULL AS weight FROM {LOOKS}"  # noqa: S608 (the text is ours)


def _steps(value: str) -> str:
    # Ranks see different samples: their mean is the run's.
    return f"SELECT '' AS place, step, avg({value}) AS value, 1 AS weight FROM steps GROUP BY step"  # noqa: S608


_SIGNALS = (
    Signal(
        "heldout",
        "evals.loss",
        """SELECT CASE weights WHEN 'ema' THEN 'average' ELSE 'weights' END AS place, step, avg(loss) AS value,
            max(draws) AS weight
        FROM evals GROUP BY 1, 2""",
    ),
    Signal(
        "loss",
        "losses.loss",
        f"""SELECT {_RANGE} AS place, step, sum(loss * count) / sum(count) AS value, sum(count) AS weight
        FROM losses WHERE count > 0 GROUP BY 1, 2""",  # noqa: S608 (the text is ours)
        by_step=True,
    ),
    # 1 where no weights are asked for, as by min-SNR.
    Signal(
        "loss weight",
        "losses.weighted_loss",
        """SELECT '' AS place, step, sum(weighted_loss * count) / nullif(sum(loss * count), 0) AS value,
            sum(count) AS weight
        FROM losses WHERE count > 0 GROUP BY step""",
        by_step=True,
    ),
    Signal(
        "timesteps",
        "losses.bin",
        """SELECT '' AS place, step, sum((bin + 0.5) * count) / sum(count) AS value, sum(count) AS weight
        FROM losses WHERE count > 0 GROUP BY step""",
        by_step=True,
    ),
    Signal("training loss", "steps.loss", _steps("loss"), by_step=True),
    Signal("gradient", "steps.grad_norm", _steps("grad_norm"), by_step=True),
    # A component's share of the gradient varies less than the gradient, of which every step is known.
    Signal(
        "gradient share",
        "tensors.grad_norm",
        _looks("sqrt(coalesce(gradient, 0) / nullif(sum(gradient) OVER (PARTITION BY step), 0))"),
    ),
    Signal("update", "tensors.update_norm", _looks("sqrt(moved)")),
    Signal("distance", "tensors.distance_from_start", _looks("sqrt(distance)")),
    Signal("delivered", "tensors.delivered", _looks("delivered / nullif(intended, 0)")),
    Signal(
        "effective lr",
        "groups.effective_lr",
        """SELECT coalesce(nullif(replace(name, '_', ' '), ''), 'group ' || "group") AS place, step,
            avg(effective_lr) AS value, 1 AS weight
        FROM groups GROUP BY 1, 2""",
        by_step=True,
    ),
    Signal("d", "groups.d", "SELECT '' AS place, step, avg(d) AS value, 1 AS weight FROM groups GROUP BY 2", True),
    Signal(
        "ema lag",
        "ema.lag_norm",
        """WITH lag AS (SELECT step, sum(lag_energy) AS energy FROM ema_steps GROUP BY step),
            travelled AS (SELECT step, sum(distance_energy) AS energy FROM tensor_steps GROUP BY step)
        SELECT '' AS place, step, sqrt(lag.energy / nullif(travelled.energy, 0)) AS value, NULL AS weight
        FROM lag JOIN travelled USING (step)""",
    ),
    Signal(
        "noise",
        "batches.noise_channel_mean_var",
        """SELECT '' AS place, step, sum(noise_channel_mean_var * latent_pixels * samples) / sum(samples) AS value,
            sum(samples) AS weight
        FROM batches WHERE samples > 0 GROUP BY step""",
    ),
    Signal(
        "seconds",
        "steps.seconds",
        # The first steps are slow for reasons of their own. Probes go on after a step's time has been taken, so that
        # what they leave of it may be less than the model's passes took.
        """WITH parts AS (
            SELECT step, seconds - coalesce(probe_seconds, 0) AS rest, forward_seconds + backward_seconds AS passes
            FROM steps WHERE step > 3
        )
        SELECT '' AS place, step, max(greatest(rest, coalesce(passes, 0))) AS value, 1 AS weight
        FROM parts GROUP BY step HAVING value > 0""",
        by_step=True,
        pooled="min",
    ),
    Signal("memory", "steps.memory_bytes", _steps("memory_bytes"), by_step=True),
    Signal("resident memory", "steps.rss_bytes", _steps("rss_bytes"), by_step=True),
    # Comparable where both runs have both images.
    Signal(
        "sample distance",
        "samples.distance",
        """SELECT '' AS place, step, avg(distance) AS value, min(earlier) AS weight FROM (
            SELECT *, lag(step) OVER (PARTITION BY prompt, seed, weights ORDER BY step) AS earlier FROM samples
        ) WHERE earlier IS NOT NULL AND weights = 'raw' GROUP BY step""",
    ),
)

SIGNALS = {signal.name: signal for signal in _SIGNALS}

CONTINUITY = """
    SELECT concat_ws(' ', item, key) AS what, status, min(step) AS step, count(*) AS count
    FROM continuity JOIN resumes USING (segment)
    WHERE NOT superseded AND status <> 'match' AND NOT (asked IS NOT NULL AND loaded IS NOT DISTINCT FROM asked)
        AND NOT (item = 'group' AND key = 'initial_lr') -- the schedule's base_lr says whether it was asked for
    GROUP BY 1, 2 ORDER BY 1, 2"""
"""What a resume that counts lost or changed, though nobody asked for it."""
