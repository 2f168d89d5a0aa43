"""Draws the report's curves from the log: those of the catalogue (`curves`), reduced to what a page can show.

Judges nothing; the maps of the model are in `maps`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from trainscope.engine.curves import SERIES, SeriesSpec
from trainscope.engine.query import check_select
from trainscope.engine.sandbox import DEFAULT_LIMITS, Limits, connect, execute
from trainscope.engine.tables import TableSource
from trainscope.errors import RuleError
from trainscope.schema import Series

MAX_POINTS = 2000


def draw_series(source: TableSource, limits: Limits = DEFAULT_LIMITS) -> list[Series]:
    """Every series that has data. One that cannot be drawn is left out: curves decide nothing."""
    drawn = []
    read = {name for spec in SERIES.values() for name in check_select(spec.sql).tables}
    with connect(source, read, limits) as connection:
        for name, spec in SERIES.items():
            try:
                columns = _lines(connection, spec, limits)
            except RuleError:
                continue
            values = [value for _, line in columns.values() for value in line]
            if values and (spec.idle is None or any(value != spec.idle for value in values)):
                recorded = max(len(steps) for steps, _ in columns.values())
                drawn.append(
                    Series(
                        name,
                        spec.title,
                        spec.unit,
                        spec.log_scale,
                        {line: downsample(*points) for line, points in columns.items()},
                        spec.about,
                        recorded if recorded > MAX_POINTS else 0,
                    )
                )
    return drawn


def _lines(connection: Any, spec: SeriesSpec, limits: Limits) -> dict[str, tuple[list[int], list[float]]]:
    # Lists, one row a line: a long run has more points than a query may return rows.
    query = f"""SELECT line, list(step ORDER BY step), list(value::DOUBLE ORDER BY step)
        FROM ({spec.sql}) WHERE value IS NOT NULL AND step IS NOT NULL GROUP BY line ORDER BY line"""  # noqa: S608
    _, rows = execute(connection, query, limits=limits)
    return {str(line): (steps, values) for line, steps, values in rows}


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
