"""What a page shows of the measurements: each card's plots and worst places, the overview, the contact sheets.

Looks series up by the names that findings give. Must not know HTML or plotly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainscope.report.figures import Figure, curve, heat_map, thinned
from trainscope.report.images import Image, embed
from trainscope.report.story import Card, Json
from trainscope.report.wording import number

OVERVIEW = (
    *("eval_loss", "train_loss", "loss_by_timestep", "effective_lr", "d"),
    *("delivered", "relative_distance", "lora_delta", "ema_lag", "ema_delivered"),
)
"""Series of the overview, in order."""

MOST_COLUMNS = 10
"""Of a contact sheet."""
SHOWN_PLACES = 8
MOST_PLACES = 60


@dataclass(frozen=True)
class Places:
    """The worst places of a finding; `kind` is what they all are, `more` counts those that only report.json names."""

    finding: Json
    kind: str
    shown: list[Json]
    folded: list[Json]
    more: int


@dataclass(frozen=True)
class Sheet:
    """A contact sheet: a prompt's images, `rows` by weights, each with an image or None for every step.

    `sampled` counts the steps that have images; of many the first, the last and some evenly between are shown.
    """

    prompt: str
    seed: Any
    sampled: int
    steps: list[int]
    rows: list[tuple[str, list[tuple[Json, Image] | None]]]

    @property
    def thinned(self) -> bool:
        return len(self.steps) < self.sampled


class Plots:
    """Makes the page's figures, numbers them and keeps them for the script."""

    def __init__(self, report: Json) -> None:
        self._series = {series["name"]: series for series in report["series"]}
        self._maps = report["map"]
        self._resumes = [resume["step"] for resume in report.get("resumes", []) if not resume["replaced"]]
        self.made: list[Figure] = []

    def of_card(self, card: Card) -> list[Figure]:
        """Draw each series that the card's findings name once, with all their thresholds and places."""
        plots: dict[str, tuple[str, dict[float, list[str]], dict[tuple[int, int | None], list[str]]]] = {}
        for finding in card.findings:
            for plot in finding["plots"]:
                if plot["series"] not in self._series:
                    continue
                _, limits, places = plots.setdefault(plot["series"], (plot["title"], {}, {}))
                limit = number(plot["threshold"])
                if limit is not None:
                    limits.setdefault(limit, []).append(finding["code"])
                if finding["first_step"] is not None:
                    places.setdefault((finding["first_step"], finding["last_step"]), []).append(finding["code"])
        return [
            self._curve(
                name,
                title=title,
                thresholds=[(value, ", ".join(_unique(codes))) for value, codes in limits.items()],
                places=[
                    (first, last, ", ".join(_unique(codes)))
                    for (first, last), codes in sorted(places.items(), key=lambda place: place[0][0])
                ],
            )
            for name, (title, limits, places) in plots.items()
        ]

    def overview(self) -> tuple[list[Figure], list[Figure]]:
        """Draw the curves that every reader wants, and all the others."""
        chosen = [name for name in OVERVIEW if name in self._series]
        rest = [name for name in self._series if name not in chosen]
        return [self._curve(name) for name in chosen], [self._curve(name) for name in rest]

    def maps(self) -> list[Figure]:
        return [self._keep(heat_map(measure, self._next())) for measure in self._maps if measure["modules"]]

    def _curve(self, name: str, **extra: Any) -> Figure:
        return self._keep(curve(self._series[name], self._next(), resumes=self._resumes, **extra))

    def _next(self) -> str:
        return f"figure-{len(self.made) + 1}"

    def _keep(self, figure: Figure) -> Figure:
        self.made.append(figure)
        return figure


def worst_places(card: Card) -> list[Places]:
    """List the places of the card's findings that have several."""
    found = []
    for finding in card.findings:
        places = finding["where"]
        if len(places) < 2:
            continue
        kinds = {place["kind"] for place in places}
        shown, folded = places[:SHOWN_PLACES], places[SHOWN_PLACES:MOST_PLACES]
        found.append(
            Places(finding, kinds.pop() if len(kinds) == 1 else "", shown, folded, max(0, len(places) - MOST_PLACES))
        )
    return found


def contact_sheets(samples: Sequence[Json], run_dir: Path, budget: int) -> list[Sheet]:
    """Group the images by prompt and seed: raw weights beside EMA, over steps; `budget` bytes of files."""
    groups: dict[tuple[str, Any], list[Json]] = {}
    for sample in samples:
        groups.setdefault((sample["prompt"], sample["seed"]), []).append(sample)
    chosen = {key: _columns(members) for key, members in groups.items()}
    shown = [sample for key, members in groups.items() for sample in members if sample["step"] in chosen[key]]
    images = {id(sample): image for sample, image in zip(shown, embed(shown, run_dir, budget), strict=True)}
    return [_sheet(prompt, seed, groups[prompt, seed], chosen[prompt, seed], images) for prompt, seed in groups]


def _columns(members: list[Json]) -> list[int]:
    """The steps that are shown."""
    return thinned(sorted({sample["step"] for sample in members}), MOST_COLUMNS)


def _sheet(prompt: str, seed: Any, members: list[Json], steps: list[int], images: dict[int, Image]) -> Sheet:
    sampled = len({sample["step"] for sample in members})
    kinds = sorted({sample["weights"] for sample in members}, key=lambda kind: (kind != "raw", kind))
    cells = {
        (sample["weights"], sample["step"]): (sample, images[id(sample)]) for sample in members if id(sample) in images
    }
    rows = [(kind, [cells.get((kind, step)) for step in steps]) for kind in kinds]
    return Sheet(prompt, seed, sampled, steps, rows)


def _unique(codes: list[str]) -> list[str]:
    return list(dict.fromkeys(codes))
