"""comparison.html: runs side by side on one page that opens offline, drawn from comparison.json's dict.

Labels, prompts and values are untrusted text, as in a report (`html`). Must not know the engine or the run log.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from trainscope.report.compare_samples import sample_sheets
from trainscope.report.compare_words import (
    OUTCOMES,
    earlier_text,
    finding_counts,
    number_groups,
    number_text,
    run_state,
    setting_text,
    shared_findings,
    unseen,
    unusual,
    worst,
)
from trainscope.report.evidence import OVERVIEW
from trainscope.report.figures import Figure, curve
from trainscope.report.html import draw_page, island, room_for_images

Json = dict[str, Any]

GENERATOR = "trainscope compare"
"""What the page says of itself, so that it may be replaced by the next one."""

DASHES = ("", "6px,4px", "2px,3px", "10px,3px,2px,3px", "12px,4px", "5px,3px,2px,3px,2px,3px")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "triangle-down")
COLOURS = 6
SYMBOL_PATHS = (
    "M13 6a4 4 0 1 0 8 0a4 4 0 1 0-8 0z", "M13.5 2.5h7v7h-7z", "M17 1l5 5-5 5-5-5z", "M17 1.5l4.6 8h-9.2z",
    "M14.2 1.8L17 4.6l2.8-2.8 1.4 1.4L18.4 6l2.8 2.8-1.4 1.4L17 7.4l-2.8 2.8-1.4-1.4L15.6 6l-2.8-2.8z",
    "M17 10.5l4.6-8h-9.2z",
)  # fmt: skip
"""The same marks in the legend, in a box of 34 × 12."""

FAR = 1.5
"""A run that is longer than most by more than this may be cut off in the curves, by a button."""


@dataclass(frozen=True)
class Look:
    """How a run is drawn: no two runs share colour, dashes and mark."""

    colour: int
    dash: str
    symbol: int


def look_of(run: int) -> Look:
    """The look of a run by its number: from the seventh on colours come back with another dash and mark."""
    turn, colour = divmod(run, COLOURS)
    return Look(colour, DASHES[(colour + 3 * turn) % len(DASHES)], (colour + 2 * turn) % len(SYMBOLS))


def render_comparison(comparison: Json) -> str:
    """Draw the page. The dict and the sample images in the runs' directories decide what it says."""
    figures = [_figure(overlay, number) for number, overlay in enumerate(comparison["curves"], 1)]
    overview, panels, more = _arranged(comparison["curves"], figures)
    specs = island([figure.spec for figure in figures])
    sheets, alone = sample_sheets(comparison, room_for_images(specs))
    return draw_page(
        "compare.html",
        specs,
        comparison=comparison,
        generator=GENERATOR,
        looks=[look_of(number) for number in range(len(comparison["runs"]))],
        symbol_paths=SYMBOL_PATHS,
        finding_counts=finding_counts,
        worst=worst,
        unseen=unseen,
        shared=shared_findings(comparison),
        groups=number_groups(comparison),
        overview=overview,
        panels=panels,
        more=more,
        until=_until(comparison["runs"]),
        signs=any(line["bad"] or line["zero"] for figure in figures for line in figure.spec["lines"]),
        sheets=sheets,
        alone=alone,
        outcomes=OUTCOMES,
        setting_text=setting_text,
        earlier_text=earlier_text,
        unusual=unusual,
        number_text=number_text,
        state=run_state,
    )


def _figure(overlay: Json, number: int) -> Figure:
    figure = curve(overlay, f"figure-{number}")
    for line, columns in zip(figure.spec["lines"], overlay["lines"].values(), strict=False):
        look = look_of(columns["run"])
        line.update(colour=look.colour, dash=look.dash or "solid", symbol=SYMBOLS[look.symbol])
    figure.spec["legend"] = False  # the page has one for all figures
    return figure


def _until(runs: Sequence[Json]) -> int | None:
    """The step up to which half of the runs go, where another goes so far that they are pressed to the left."""
    last = sorted(run["last_step"] for run in runs)
    middle = last[len(last) // 2 - 1] if len(last) % 2 == 0 else last[len(last) // 2]
    return middle if 0 < middle * FAR < last[-1] else None


Panels = list[tuple[Json, list[Figure]]]


def _arranged(overlays: Sequence[Json], figures: Sequence[Figure]) -> tuple[list[Figure], Panels, list[Figure]]:
    """What every reader wants to compare; small multiples, each with its first overlay; and the rest."""
    pairs = list(zip(overlays, figures, strict=True))
    single = [(overlay, figure) for overlay, figure in pairs if not overlay["panel"]]
    chosen = [
        figure
        for name in OVERVIEW
        for overlay, figure in single
        if overlay["name"] == name and len(overlay["lines"]) > 1
    ]
    panels: Panels = []
    for name in dict.fromkeys(overlay["panel"] for overlay in overlays if overlay["panel"]):
        own = [(overlay, figure) for overlay, figure in pairs if overlay["panel"] == name]
        panels.append((own[0][0], [replace(figure, about="") for _, figure in own]))
    return chosen, panels, [figure for _, figure in single if figure not in chosen]
