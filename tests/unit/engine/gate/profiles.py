"""Profiles of runs that never were: noise around a course, drawn from a seed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from trainscope.engine.gate.profile import Curve, Profile

STEPS = 64
HARDWARE: dict[str, str | None] = {"device": "cpu", "cpu.cores": "2"}


def by_step(values: Any, width: int = 1) -> Curve:
    steps = [width * (number + 1) for number in range(len(values))]
    return Curve(width=width, steps=steps, values=[float(value) for value in values], weights=[1.0] * len(steps))


def at_looks(values: dict[int, float], agree: float = 0.0) -> Curve:
    return Curve(steps=list(values), values=list(values.values()), weights=[agree] * len(values))


def profile(seed: int = 0, *, steps: int = STEPS, spread: float = 0.01, **changes: Any) -> Profile:
    """A run that learns. `spread` is the sd between seeds, of logarithms; `curves` replaces some of the curves."""
    random = np.random.default_rng(seed)

    def course(start: float, end: float, noise: float) -> Any:
        level = math.exp(spread * random.standard_normal())
        return level * np.geomspace(start, end, steps) * np.exp(noise * random.standard_normal(steps))

    looks = [step for step in (1, 2, 3, 4, 5, 20, 40, 60) if step <= steps]
    evals = range(0, steps + 1, 8)
    drop = math.exp(spread * random.standard_normal())
    curves = {
        "heldout/weights": at_looks({step: (0.5 ** (step / STEPS)) * (drop if step else 1.0) for step in evals}, 16),
        "loss/low noise": by_step(course(1.0, 0.6, 0.1)),
        "loss/high noise": by_step(course(1.0, 0.4, 0.1)),
        "gradient": by_step(course(2.0, 1.0, 0.1)),
        "gradient share/unet": at_looks(dict.fromkeys(looks, 1.0)),
        "update/unet": at_looks(
            {step: float(value) for step, value in zip(looks, course(0.1, 0.1, 0.02), strict=False)}
        ),
        "distance/unet": at_looks({step: 0.1 * math.sqrt(step) * drop for step in looks}),
        "delivered/unet": at_looks(dict.fromkeys(looks, 1.0)),
        "effective lr/unet": by_step([1e-3] * steps),
        "seconds": by_step(0.02 + 0.001 * random.random(steps)),
    }
    given: dict[str, Any] = {
        "id": f"run{seed}",
        "name": f"seed-{seed}",
        "status": "completed",
        "last_step": steps,
        "hardware": HARDWARE,
        "facts": {"trained weights, unet": 1000.0, "weight decay, unet": "0.01"},
        "config": {"run.seed": seed, "optimizer.lr": 1e-3},
        "curves": {**curves, **changes.pop("curves", {})},
        **changes,
    }
    return Profile(**given)


def scaled(curve: Curve, factor: float, *, since: int = 0) -> Curve:
    """The curve with another level from a step on."""
    values = [value * (factor if step > since else 1.0) for step, value in zip(curve.steps, curve.values, strict=True)]
    return curve.model_copy(update={"values": values})
