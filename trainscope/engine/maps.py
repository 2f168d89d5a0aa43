"""The report's maps: a measure of the model by module and step.

Judges nothing. At most 60 modules (their prefixes where there are more) and 60 spans of steps.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from trainscope.engine.sandbox import DEFAULT_LIMITS, Limits, connect, execute
from trainscope.engine.tables import TableSource
from trainscope.errors import RuleError
from trainscope.schema import HeatMap

MAX_MODULES = 60
MAX_STEPS = 60


@dataclass(frozen=True)
class MapSpec:
    """`above` and `below` are sums of `tensor_windows`, which add up; their ratio, finished, is the value."""

    title: str
    unit: str
    about: str
    above: str
    below: str
    finish: Callable[[float], float]


MAPS = {
    "update_ratio": MapSpec(
        "Size of a step, by module",
        "of the weights' norm",
        "How far a step moved a module's weights, as a share of their size. Dark rows learn fast, pale ones slowly.",
        "update_energy",
        "update_weight_energy",
        math.sqrt,
    ),
    "delivered": MapSpec(
        "Delivered updates, by module",
        "share",
        "How much of the step that the optimizer asked for arrived in the stored weights: dark 1, all of it; pale 0, "
        "rounded away.",
        "delivered_energy",
        "intended_energy",
        float,
    ),
}

_QUERY = """
    WITH measured AS (
        SELECT
            "window", last_step, {above} AS above, {below} AS below,
            regexp_replace(param, '(\\.lora_[AB](\\..*)?)?\\.[^.]*$', '') AS module -- both halves of a pair are one
        FROM tensor_windows WHERE {above} IS NOT NULL AND {below} IS NOT NULL AND "window" IS NOT NULL
    ),
    numbered AS (
        SELECT "window", row_number() OVER (ORDER BY "window") - 1 AS position, count(*) OVER () AS windows
        FROM (SELECT DISTINCT "window" FROM measured)
    ),
    spans AS (SELECT "window", position * least(windows, {limit}) // windows AS span FROM numbered),
    cells AS (
        SELECT
            module, max(max(last_step)) OVER (PARTITION BY span) AS last_step, sum(above) AS above, sum(below) AS below
        FROM measured JOIN spans USING ("window") GROUP BY module, span
    )
    SELECT module, list(last_step), list(above), list(below) FROM cells GROUP BY module
"""
# Lists, one row a module: a large model has more cells than a query may return rows.


def draw_maps(source: TableSource, limits: Limits = DEFAULT_LIMITS) -> list[HeatMap]:
    """Every map that has data."""
    drawn = []
    with connect(source, ["tensor_windows"], limits) as connection:
        for name, spec in MAPS.items():
            query = _QUERY.format(above=spec.above, below=spec.below, limit=MAX_STEPS)
            try:
                _, rows = execute(connection, query, limits=limits)
            except RuleError:
                continue
            if rows:
                drawn.append(_heat_map(name, spec, rows))
    return drawn


def _heat_map(name: str, spec: MapSpec, rows: list[tuple[Any, ...]]) -> HeatMap:
    shown = group_modules({str(row[0]) for row in rows})
    modules = sorted(set(shown.values()), key=_natural)
    steps = sorted({int(step) for row in rows for step in row[1]})
    sums: dict[tuple[str, int], tuple[float, float]] = {}
    for module, *lists in rows:
        for step, above, below in zip(*lists, strict=True):
            cell = (shown[str(module)], int(step))
            before = sums.get(cell, (0.0, 0.0))
            sums[cell] = (before[0] + above, before[1] + below)

    def value(module: str, step: int) -> float | None:
        above, below = sums.get((module, step), (0.0, 0.0))
        if not below:
            return None
        ratio = above / below
        return float(spec.finish(ratio)) if math.isfinite(ratio) else ratio

    values = [[value(module, step) for step in steps] for module in modules]
    return HeatMap(name, spec.title, spec.unit, modules, steps, values, spec.about)


def group_modules(modules: Collection[str], limit: int = MAX_MODULES) -> dict[str, str]:
    """Each module's name on the map: its own, or the longest prefix with which at most `limit` names remain."""
    if len(modules) <= limit:
        return {module: module for module in modules}
    # Names of adapters join their parts by underscores alone.
    for separators in (r"\.", r"[._]"):
        cuts = {module: [found.start() for found in re.finditer(separators, module)] for module in modules}
        for parts in range(max(len(cut) for cut in cuts.values()), 0, -1):
            grouped = {
                module: module[: cut[parts - 1]] if len(cut) >= parts else module for module, cut in cuts.items()
            }
            if len(set(grouped.values())) <= limit:
                return grouped
    return dict.fromkeys(modules, "model")


def _natural(name: str) -> list[Any]:
    """Sorts block 10 behind block 9."""
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in re.split(r"(\d+)", name)]
