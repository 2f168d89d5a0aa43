"""What the gate keeps of a run: curves of at most 128 points, facts that are equal or not, findings.

A baseline file holds profiles, so their fields are a format; it is checked when it is read. Knows nothing of how a
profile is made (`read`) or judged (`judge`).
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

POINTS = 128
"""A curve has at most so many points: a power of two, so that curves of different lengths have common edges."""

_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}

Name = Annotated[str, Field(max_length=200)]
Steps = Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=4 * POINTS)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Curve(_Model):
    """A measure over the steps.

    `width` > 0: point i is the mean, or the minimum, over the steps (steps[i] − width, steps[i]], and `weights[i]` the
    number of values behind it. `width` = 0: the value at the step itself, and `weights[i]` what must agree for two runs
    to compare there. Values may be NaN or infinite.
    """

    width: Annotated[int, Field(ge=0)] = 0
    steps: Steps = []
    values: list[float] = []
    weights: list[Annotated[float, Field(ge=0, allow_inf_nan=False)]] = []

    @field_validator("values", mode="before")
    @classmethod
    def _numbers(cls, values: Any) -> Any:
        """Non-finite numbers are strings in JSON."""
        if not isinstance(values, list):
            return values
        return [_NON_FINITE.get(value, value) if isinstance(value, str) else value for value in values]

    @model_validator(mode="after")
    def _fit(self) -> Curve:
        lengths = {len(self.steps), len(self.values)} | ({len(self.weights)} if self.weights else set())
        if len(lengths) > 1:
            raise ValueError("steps, values and weights differ in length")
        if any(later <= earlier for earlier, later in zip(self.steps, self.steps[1:], strict=False)):
            raise ValueError("steps do not rise")
        if self.width and any(step % self.width for step in self.steps):
            raise ValueError(f"a step is not a multiple of the width {self.width}")
        return self

    def coarser(self, width: int, pooled: Literal["mean", "min"] = "mean") -> Curve:
        """The same in wider bins; only those are kept that are whole. `width` is a multiple of this one's."""
        if not self.width or width == self.width or not self.steps:
            return self
        steps = np.array(self.steps)
        values, weights = np.array(self.values), np.array(self.weights or [1.0] * len(steps))
        edges = -(-steps // width) * width
        kept = [edge for edge in dict.fromkeys(edges.tolist()) if edge <= steps[-1]]
        return Curve(
            width=width,
            steps=kept,
            values=[
                float(values[edges == edge].min())
                if pooled == "min"
                else float(np.average(values[edges == edge], weights=weights[edges == edge]))
                for edge in kept
            ],
            weights=[float(weights[edges == edge].sum()) for edge in kept],
        )


class KnownFinding(_Model):
    """A rule that fired on a run."""

    code: Name
    severity: Name
    fingerprint: Name
    message: Annotated[str, Field(max_length=2000)] = ""
    first_step: int | None = None


class Broken(_Model):
    """A piece of state that a resume did not bring back as it was, nor as it was asked for."""

    what: Name
    status: Name
    step: int | None = None
    count: int = 1


class Profile(_Model):
    """A run, reduced to what is compared. Keys of `curves` are `signal` or `signal/where`."""

    id: Name
    name: Name
    status: Name
    last_step: Annotated[int, Field(ge=0)]
    source: str = ""
    hardware: dict[Name, Name | None] = {}
    facts: dict[Name, Name | float | None] = {}
    config: dict[Name, Any] = {}
    curves: dict[Name, Curve] = {}
    findings: list[KnownFinding] = []
    continuity: list[Broken] = []
    absent: dict[Name, str] = {}
    """Why a signal was not recorded, as the log says it."""

    @property
    def estimates_its_lr(self) -> bool:
        """Prodigy and D-Adaptation, whose step size differs between seeds."""
        return "d" in self.curves
