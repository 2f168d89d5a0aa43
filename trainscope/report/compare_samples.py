"""The sample images of several runs, those of the same prompt and seed under each other.

Paths and prompts come from comparison.json and are not trusted. Must not know how the page shows an image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainscope.report.evidence import MOST_COLUMNS
from trainscope.report.figures import thinned
from trainscope.report.images import Image, embed

Json = dict[str, Any]


@dataclass(frozen=True)
class SampleRow:
    """The images of a run: one, or None, for each step of the sheet."""

    run: int
    weights: str
    cells: list[tuple[Json, Image] | None]


@dataclass(frozen=True)
class SharedSheet:
    """A prompt and seed that several runs were sampled with; `sampled` counts the steps that have images."""

    prompt: str
    seed: Any
    sampled: int
    steps: list[int]
    rows: list[SampleRow]


def sample_sheets(comparison: Json, room: int) -> tuple[list[SharedSheet], int]:
    """A sheet for each prompt and seed that two runs have, and how many only one has; `room` is in bytes of files."""
    groups: dict[tuple[str, Any], list[Json]] = {}
    for sample in comparison["samples"]:
        groups.setdefault((sample["prompt"], sample["seed"]), []).append(sample)
    shared = {key: members for key, members in groups.items() if len({each["run"] for each in members}) > 1}
    steps = {key: _columns(members) for key, members in shared.items()}
    shown = [sample for key, members in shared.items() for sample in members if sample["step"] in steps[key]]
    images = _embedded(shown, comparison["runs"], room)
    return [
        SharedSheet(prompt, seed, len({each["step"] for each in members}), steps[prompt, seed], rows)
        for (prompt, seed), members in shared.items()
        for rows in [_rows(members, steps[prompt, seed], images)]
    ], len(groups) - len(shared)


def _columns(members: Sequence[Json]) -> list[int]:
    """The steps that are shown: the last of each run, and some evenly between of those that several have."""
    runs: dict[int, set[int]] = {}
    for sample in members:
        runs.setdefault(sample["run"], set()).add(sample["step"])
    having = Counter(step for own in runs.values() for step in own)
    last = {max(own) for own in runs.values()}
    shared = sorted(step for step, count in having.items() if count > 1 and step not in last)
    return sorted({*last, *thinned(shared, max(2, MOST_COLUMNS - len(last)))})


def _rows(members: Sequence[Json], steps: Sequence[int], images: dict[int, Image]) -> list[SampleRow]:
    kinds = sorted({(each["run"], each["weights"]) for each in members}, key=lambda kind: (kind[0], kind[1] != "raw"))
    cells = {
        (each["run"], each["weights"], each["step"]): (each, images[id(each)]) for each in members if id(each) in images
    }
    return [SampleRow(run, weights, [cells.get((run, weights, step)) for step in steps]) for run, weights in kinds]


def _embedded(shown: Sequence[Json], runs: Sequence[Json], room: int) -> dict[int, Image]:
    """Images by the identity of their sample. Each run gets its share of the room, and what those before left."""
    found: dict[int, Image] = {}
    own = {number: [sample for sample in shown if sample["run"] == number] for number in range(len(runs))}
    left = [number for number, members in own.items() if members]
    while left:
        number, share = left[0], room // len(left)
        for sample, image in zip(own[number], embed(own[number], Path(runs[number]["path"]), share), strict=True):
            room -= len(image.data_uri) * 3 // 4
            # The page lies elsewhere than the run: a relative address would lead nowhere.
            found[id(sample)] = replace(image, href="")
        left.pop(0)
    return found
