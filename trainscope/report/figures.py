"""Curves and heat maps as plain specifications for the page's script, and as one sentence each for readers without it.

Makes figures from report.json's `series` and `map`, thinned so that a page stays small. Must not know plotly or HTML.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from trainscope.report.wording import brief, clean, counted, number, one_line, steps

MAX_POINTS = 800
MAX_LINES = 12
MAX_COLUMNS = 200
MAX_MODULES = 240


@dataclass
class Figure:
    """A figure: `spec` is what the script draws, `caption` says the same in words, `about` what is measured."""

    id: str
    title: str
    caption: str
    about: str = ""
    spec: dict[str, Any] = field(default_factory=dict)


def curve(
    series: dict[str, Any],
    identity: str,
    *,
    title: str = "",
    thresholds: Iterable[tuple[float, str]] = (),
    places: Iterable[tuple[int, int | None, str]] = (),
    resumes: Iterable[int] = (),
) -> Figure:
    """Make a figure of a series. Thresholds are (value, label), places (first step, last step, label).

    A line that is called "mean of …" lies over the others.
    """
    named = list(series["lines"].items())
    lines = [_line(str(name), columns) for name, columns in named[:MAX_LINES]]
    positive = any(y is not None and y > 0 for line in lines for y in line["y"])
    log = bool(series["log_scale"]) and positive
    for line in lines:
        line["zero"] = [x for x, y in zip(line["x"], line["y"], strict=True) if y is not None and y <= 0] if log else []
    words = one_line(title or series["title"] or series["name"])
    limits: list[dict[str, Any]] = [
        {"value": value, "label": f"threshold {brief(value)} · {one_line(label)}"} for value, label in thresholds
    ]
    begins = min((line["x"][0] for line in lines if line["x"]), default=0)
    ends = max((line["x"][-1] for line in lines if line["x"]), default=0)
    marks = [_place(first, last, one_line(label), begins, ends) for first, last, label in places]
    spec = {
        "id": identity,
        "kind": "curve",
        "title": words,
        "unit": one_line(series["unit"]),
        "log": log,
        "lines": lines,
        "thresholds": limits,
        "places": marks,
        "resumes": [step for step in resumes if begins <= step <= ends],
    }
    caption = _curve_in_words(lines, len(named), [value["value"] for value in limits])
    recorded = max([int(series.get("recorded") or 0), *(len(columns.get("step", [])) for _, columns in named)])
    drawn = max((len(line["x"]) for line in lines), default=0)
    if drawn < recorded:
        caption += f" Reduced from {counted(recorded, 'step')} to {brief(drawn)} points, each span's extremes kept."
    return Figure(identity, words, caption, one_line(series.get("about") or ""), spec)


def heat_map(measure: dict[str, Any], identity: str) -> Figure:
    """Make a figure of a measure over modules and steps; None stays a gap."""
    rows = thinned(list(range(len(measure["modules"]))), MAX_MODULES)
    columns = thinned(list(range(len(measure["steps"]))), MAX_COLUMNS)
    values = measure["values"]
    cells = [[_cell(values, row, column) for column in columns] for row in rows]
    words = one_line(measure["title"] or measure["name"])
    spec = {
        "id": identity,
        "kind": "map",
        "title": words,
        "unit": one_line(measure["unit"]),
        "modules": [clean(str(measure["modules"][row])) for row in rows],
        "steps": [measure["steps"][column] for column in columns],
        "values": cells,
    }
    about = one_line(measure.get("about") or "")
    return Figure(identity, words, _map_in_words(measure, len(rows), len(columns)), about, spec)


def _place(first: int, last: int | None, label: str, begins: int, ends: int) -> dict[str, Any]:
    """Where on a curve a finding is; a place that is all of it needs words alone."""
    last = first if last is None else last
    whole = first <= begins and last >= ends
    words = "whole run" if whole else steps(first, last)
    return {"step": first, "last": last, "whole": whole, "label": f"{label}: {words}"}


def _line(name: str, columns: dict[str, list[Any]]) -> dict[str, Any]:
    columns_zipped = zip(columns.get("step", []), columns.get("value", []), strict=False)
    pairs = [(int(step), value) for step, value in columns_zipped if number(step) is not None]
    points = [(step, number(value)) for step, value in pairs]
    bad = [step for step, value in pairs if value is not None and number(value) is None]
    kept = _thin_curve(points)
    return {
        "name": one_line(name),
        "mean": name.startswith("mean of "),
        "x": [x for x, _ in kept],
        "y": [_digits(y, 6) for _, y in kept],
        "bad": thinned(bad, 200),
    }


def _thin_curve(points: list[tuple[int, float | None]]) -> list[tuple[int, float | None]]:
    """Keep each bucket's lowest and highest point, so that spikes survive."""
    if len(points) <= MAX_POINTS:
        return points
    kept: list[tuple[int, float | None]] = [points[0]]
    buckets = (MAX_POINTS - 2) // 2
    for bucket in range(buckets):
        part = points[bucket * len(points) // buckets : (bucket + 1) * len(points) // buckets]
        finite = [point for point in part if point[1] is not None]
        if not finite:
            kept.append(part[0])
            continue
        low = min(finite, key=lambda point: point[1] or 0.0)
        high = max(finite, key=lambda point: point[1] or 0.0)
        kept += sorted({low, high}, key=lambda point: point[0])
    return [*kept, points[-1]]


def thinned(items: list[Any], most: int) -> list[Any]:
    """At most so many of the items: the first, the last and evenly between."""
    if len(items) <= most:
        return items
    return [items[round(index * (len(items) - 1) / (most - 1))] for index in range(most)]


def _cell(values: list[list[Any]], row: int, column: int) -> float | None:
    try:
        return _digits(number(values[row][column]), 4)
    except IndexError:
        return None


def _digits(value: float | None, digits: int) -> float | None:
    return None if value is None else float(f"{value:.{digits}g}")


def _curve_in_words(lines: list[dict[str, Any]], count: int, thresholds: list[float]) -> str:
    """Say what the curves show: `Steps 1–150: raw 1.12 → 0.19, ema 1.12 → 0.21. Threshold 0.5.`"""
    seen = [step for line in lines for step in (line["x"][:1] + line["x"][-1:])]
    parts = [_line_in_words(line, alone=len(lines) == 1, few=len(lines) < 3) for line in lines[:4]]
    if count > 4:
        parts.append(counted(count - 4, "more line") + (f", {MAX_LINES} drawn" if count > MAX_LINES else ""))
    text = "; ".join(parts) if any("," in part for part in parts) else ", ".join(parts)
    if not seen:
        text = "Nothing recorded"
    else:
        whole = steps(min(seen), max(seen))
        text = f"{whole[:1].upper()}{whole[1:]}: {text}"
    limits = f" Threshold {', '.join(brief(value) for value in thresholds)}." if thresholds else ""
    return f"{text}.{limits}"


def _line_in_words(line: dict[str, Any], *, alone: bool, few: bool) -> str:
    values = [y for y in line["y"] if y is not None]
    name = "" if alone else f"{line['name']} "
    bad = f", {counted(len(line['bad']), 'non-finite value')}" if line["bad"] else ""
    if not values:
        return f"{name}no finite values{bad}"
    first, last, low, high = (brief(value) for value in (values[0], values[-1], min(values), max(values)))
    spread = f" (between {low} and {high})" if few and {low, high} - {first, last} else ""
    return f"{name}{first if len(values) == 1 else f'{first} → {last}'}{spread}{bad}"


def _map_in_words(measure: dict[str, Any], rows: int, columns: int) -> str:
    modules, instants = len(measure["modules"]), len(measure["steps"])
    finite = [number(value) for row in measure["values"] for value in row]
    known = [value for value in finite if value is not None]
    text = f"{counted(modules, 'module')} × {counted(instants, 'step')}"
    if known:
        low, high = brief(min(known)), brief(max(known))
        unit = "" if measure["unit"] == "share" else one_line(measure["unit"])
        text += f", {f'all {low}' if low == high else f'from {low} to {high}'} {unit}".rstrip()
    text += "."
    if rows < modules or columns < instants:
        text += f" Drawn: {rows} × {columns} of them."
    if len(known) < len(finite):
        text += " Gaps were not recorded."
    return text
