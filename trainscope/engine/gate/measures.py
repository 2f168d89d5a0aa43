"""The measures that are numbers: what each is called, which way is worse, and how large a difference must be to count.

The floors were measured between seeds of real runs of the tiny models; docs/gate.md has the figures. Judges nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

Reduction = Literal["mean", "last", "rms", "slope", "quarters", "quick", "peak", "growth"]


@dataclass(frozen=True)
class Floor:
    """A difference below one of these is none, whatever the runs' own noise.

    `relative` is a factor less 1; `absolute` is in the measure's unit; `learned` is a share of the logarithm by which
    the baseline's held-out loss fell: runs that learn more differ more.
    """

    relative: float = 0.0
    absolute: float = 0.0
    learned: float = 0.0


@dataclass(frozen=True)
class Measure:
    """A number of a run, from the curves of a signal.

    `logarithmic` measures are judged as logarithms. `estimated` is the floor where the optimizer estimates its step
    size (Prodigy, D-Adaptation), which differs between seeds and takes everything else along. `expected`: a run that
    lacks it should say so even where the baseline lacks it as well.
    """

    name: str
    title: str
    signal: str
    reduction: Reduction
    worse: Literal["higher", "lower", "both"]
    floor: Floor
    estimated: Floor | None = None
    logarithmic: bool = True
    unit: str = ""
    expected: bool = False
    same_hardware: bool = False
    least_points: int = 1
    """Fewer values than these tell nothing."""
    on_cpu: Floor | None = None
    """The floor of a run without an accelerator, which shares its processor with whatever else runs."""

    def half_width(self, floor: Floor, base: float, learned: float) -> float:
        """The floor on the scale that the measure is judged on; `base` is on that scale too."""
        if not self.logarithmic:
            return max(floor.absolute, floor.relative * abs(base), floor.learned * learned)
        absolute = math.log1p(floor.absolute / math.exp(base)) if floor.absolute and math.isfinite(base) else 0.0
        return max(math.log1p(floor.relative), absolute, floor.learned * learned)


_MEASURES = (
    Measure(
        "heldout-loss",
        "Held-out loss at the end",
        "heldout",
        "last",
        "higher",
        Floor(relative=0.025, absolute=0.002, learned=0.2),
        Floor(relative=0.12, absolute=0.002, learned=0.2),
        unit="mean squared error",
        expected=True,
    ),
    Measure(
        "heldout-slope",
        "Change of the held-out loss in the second half, its logarithm",
        "heldout",
        "slope",
        "higher",
        Floor(absolute=0.04, learned=0.12),
        Floor(absolute=0.3, learned=0.12),
        logarithmic=False,
        expected=True,
    ),
    Measure(
        "loss",
        "Training loss",
        "loss",
        "mean",
        "higher",
        Floor(relative=0.03, absolute=0.002, learned=0.15),
        Floor(relative=0.12, absolute=0.002, learned=0.15),
        expected=True,
    ),
    Measure("loss-weight", "Weight of the training loss", "loss weight", "mean", "both", Floor(relative=0.1)),
    Measure(
        "timesteps",
        "Mean timestep, in tenths of the model's",
        "timesteps",
        "mean",
        "both",
        Floor(absolute=0.3),
        logarithmic=False,
    ),
    Measure(
        "gradient", "Gradient norm before clipping", "gradient", "mean", "both", Floor(0.2), Floor(6.0), expected=True
    ),
    Measure("update", "Update norm of a step", "update", "rms", "both", Floor(0.6), Floor(3.0), expected=True),
    Measure("distance", "Distance from the start", "distance", "last", "both", Floor(0.8), Floor(6.0), expected=True),
    Measure(
        "delivered",
        "Share of the intended updates that arrived",
        "delivered",
        "mean",
        "both",
        Floor(absolute=0.04),
        logarithmic=False,
    ),
    Measure(
        "effective-lr",
        "Effective learning rate",
        "effective lr",
        "quarters",
        "both",
        Floor(0.01),
        Floor(6.0),
        expected=True,
    ),
    Measure("d", "Estimated step size d", "d", "quarters", "both", Floor(6.0), Floor(6.0)),
    Measure(
        "ema-lag",
        "Distance of the average from the weights, relative to what they travelled",
        "ema lag",
        "last",
        "both",
        Floor(0.7),
        Floor(0.8),
    ),
    Measure("noise", "Low frequencies in the noise (1 = white)", "noise", "mean", "both", Floor(0.1)),
    Measure(
        "throughput",
        "Time of the quickest step, without probes",
        "seconds",
        "quick",
        "higher",
        Floor(relative=0.4),
        unit="s",
        same_hardware=True,
        least_points=30,
        on_cpu=Floor(relative=2.0),
    ),
    Measure(
        "memory",
        "Peak memory of the accelerator",
        "memory",
        "peak",
        "higher",
        Floor(relative=0.1, absolute=64 * 2**20),
        unit="bytes",
        same_hardware=True,
    ),
    Measure(
        "resident-memory",
        "Memory that the process took during the run",
        "resident memory",
        "growth",
        "higher",
        Floor(relative=1.0, absolute=512 * 2**20),
        logarithmic=False,
        unit="bytes",
        same_hardware=True,
    ),
    Measure(
        "sample-distance",
        "Difference of sample images to those before",
        "sample distance",
        "mean",
        "both",
        Floor(relative=0.25, absolute=0.01),
        Floor(relative=1.5, absolute=0.01),
    ),
)

MEASURES: Mapping[str, Measure] = {measure.name: measure for measure in _MEASURES}

EXACT: Mapping[str, str] = {
    "findings": "Findings that no baseline has",
    "setup": "What is trained, on what, and how",
    "continuity": "State that a resume lost or changed",
}
"""Measures that are equal or not."""


def with_floor(measure: Measure, floor: Floor) -> Measure:
    """The measure with a floor of the user's."""
    return replace(measure, floor=floor, estimated=floor, on_cpu=None)
