"""The report's curves: what each is called, its unit, and the SQL that draws it from the log.

Rules name these series in `plot`. Judges nothing; the maps of the model are in `maps`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainscope.engine.query import check_select
from trainscope.engine.sandbox import DEFAULT_LIMITS, Limits, connect, execute
from trainscope.engine.tables import TableSource
from trainscope.errors import RuleError
from trainscope.schema import Series

MAX_POINTS = 2000


@dataclass(frozen=True)
class SeriesSpec:
    """`sql` gives the columns line, step, value: one value for each line and step."""

    title: str
    unit: str
    log_scale: bool
    sql: str
    idle: float | None = None
    """Where every value is this one, there is nothing to show."""


def _steps(column: str, line: str) -> str:
    # Ranks see different samples: their mean is the run's.
    return f"SELECT '{line}' AS line, step, avg({column}) AS value FROM steps GROUP BY step"  # noqa: S608


def _groups(column: str) -> str:
    name = "coalesce(name, 'group ' || \"group\")"
    return f"SELECT {name} AS line, step, max({column}) AS value FROM groups GROUP BY 1, 2"  # noqa: S608


def _ratio(above: str, below: str, summary: str) -> str:
    """Root of a ratio of energies: the ratio of the norms of the whole model."""
    return f"""
        SELECT 'model' AS line, step, sqrt(sum({above}) / nullif(sum({below}), 0)) AS value
        FROM {summary} GROUP BY step"""  # noqa: S608


def _delivered(summary: str) -> str:
    """Share of the intended update that arrived, each tensor weighted by the energy that it was to receive."""
    return f"""
        SELECT 'model' AS line, step, sum(delivered_energy) / nullif(sum(intended_energy), 0) AS value
        FROM {summary} GROUP BY step"""  # noqa: S608


SERIES: dict[str, SeriesSpec] = {
    "eval_loss": SeriesSpec(
        "Held-out loss",
        "mean squared error",
        False,
        "SELECT concat_ws(' ', weights, mode) AS line, step, avg(loss) AS value FROM evals GROUP BY 1, 2",
    ),
    "train_loss": SeriesSpec("Training loss", "mean squared error", False, _steps("loss", "train")),
    "loss_by_timestep": SeriesSpec(
        "Training loss by timestep (0 % is a clean picture), unweighted",
        "mean loss",
        False,
        """
        WITH spans AS (SELECT *, step * 40 // (max(step) OVER () + 1) AS span FROM losses)
        SELECT format('{} to {} %', 20 * (bin // 2), 20 * (bin // 2) + 20) AS line, max(step) AS step,
            sum(loss * count) / sum(count) AS value
        FROM spans GROUP BY bin // 2, span""",
    ),
    "grad_norm": SeriesSpec("Gradient norm before clipping", "", True, _steps("grad_norm", "model")),
    "clip_coef": SeriesSpec(
        "What clipping multiplied the gradient by", "", False, _steps("clip_coef", "model"), idle=1.0
    ),
    "effective_lr": SeriesSpec("Effective learning rate", "", False, _groups("effective_lr")),
    "d": SeriesSpec("Estimated step size d", "", True, _groups("d")),
    "delivered": SeriesSpec("Delivered share of the intended update", "", False, _delivered("tensor_steps")),
    "relative_distance": SeriesSpec(
        "Distance from the start, relative to the weights",
        "",
        False,
        _ratio("paired_distance_energy", "paired_weight_energy", "tensor_steps"),
    ),
    "update_ratio": SeriesSpec(
        "Update of a step, relative to the weights",
        "",
        True,
        _ratio("update_energy", "update_weight_energy", "tensor_steps"),
    ),
    "ema_lag": SeriesSpec(
        "Distance of the EMA from the weights, relative to what they travelled",
        "",
        False,
        """
        WITH lag AS (SELECT step, sum(lag_energy) AS energy FROM ema_steps GROUP BY step),
            travelled AS (SELECT step, sum(distance_energy) AS energy FROM tensor_steps GROUP BY step)
        SELECT 'model' AS line, step, sqrt(lag.energy / nullif(travelled.energy, 0)) AS value
        FROM lag JOIN travelled USING (step)""",
    ),
    "ema_delivered": SeriesSpec("Delivered share of the EMA's intended update", "", False, _delivered("ema_steps")),
    "ema_distance": SeriesSpec(
        "Distance from the start: weights and EMA",
        "",
        False,
        """
        SELECT 'EMA' AS line, step, sqrt(sum(distance_energy)) AS value FROM ema_steps GROUP BY step
        UNION ALL
        SELECT 'weights', step, sqrt(sum(distance_energy)) FROM tensor_steps
        WHERE EXISTS (SELECT 1 FROM ema_steps) GROUP BY step""",
    ),
    "lora_delta": SeriesSpec(
        "What the adapter adds, relative to the weights it adapts",
        "",
        False,
        _ratio("paired_delta_energy", "paired_base_energy", "adapter_steps"),
    ),
    "nonfinite": SeriesSpec(
        "Non-finite elements",
        "elements",
        False,
        """
        SELECT 'gradients' AS line, step, sum(nonfinite) AS value FROM tensor_steps GROUP BY step
        UNION ALL SELECT 'weights', step, sum(weight_nonfinite) FROM tensor_steps GROUP BY step""",
        idle=0.0,
    ),
    "loss_scale": SeriesSpec("Loss scale", "", True, _steps("loss_scale", "scaler"), idle=1.0),
}


def draw_series(source: TableSource, limits: Limits = DEFAULT_LIMITS) -> list[Series]:
    """Every series that has data. One that cannot be drawn is left out: curves decide nothing."""
    drawn = []
    read = {name for spec in SERIES.values() for name in check_select(spec.sql).tables}
    with connect(source, read, limits) as connection:
        for name, spec in SERIES.items():
            try:
                lines = _lines(connection, spec, limits)
            except RuleError:
                continue
            values = [value for line in lines.values() for value in line["value"]]
            if values and (spec.idle is None or any(value != spec.idle for value in values)):
                drawn.append(Series(name, spec.title, spec.unit, spec.log_scale, lines))
    return drawn


def _lines(connection: Any, spec: SeriesSpec, limits: Limits) -> dict[str, dict[str, list[Any]]]:
    # Lists, one row a line: a long run has more points than a query may return rows.
    query = f"""SELECT line, list(step ORDER BY step), list(value::DOUBLE ORDER BY step)
        FROM ({spec.sql}) WHERE value IS NOT NULL AND step IS NOT NULL GROUP BY line ORDER BY line"""  # noqa: S608
    _, rows = execute(connection, query, limits=limits)
    return {str(line): downsample(steps, values) for line, steps, values in rows}


def downsample(steps: Sequence[int], values: Sequence[float], limit: int = MAX_POINTS) -> dict[str, list[Any]]:
    """At most `limit` points: the ends, and the smallest and largest of each bin, so that no spike disappears.

    A bin's non-finite value takes the place of its largest.
    """
    if len(steps) <= limit:
        return {"step": list(steps), "value": list(values)}
    array = np.asarray(values, dtype=np.float64)
    low = np.where(np.isfinite(array), array, np.inf)
    high = np.where(np.isfinite(array), array, np.inf)
    keep = {0, len(array) - 1}
    for part in np.array_split(np.arange(len(array)), (limit - 2) // 2):
        keep.add(int(part[np.argmin(low[part])]))
        keep.add(int(part[np.argmax(high[part])]))
    kept = sorted(keep)
    return {"step": [int(steps[index]) for index in kept], "value": [float(array[index]) for index in kept]}
