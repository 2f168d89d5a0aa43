"""The step from which a candidate's curve stays apart from those of the baselines. Judges nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from trainscope.engine.gate.reduce import Array, Points

SHARE = 0.5
"""A curve is apart where it is off by this share of what fails: a difference that grows fails later than it begins."""


def parting_step(
    candidate: Points, baselines: Sequence[Points], *, half_width: float, sign: float, logarithmic: bool
) -> int | None:
    """The first step from which the smoothed candidate stays outside of the band around the smoothed baselines.

    The band reaches from the lowest baseline to the highest, and half of `half_width` beyond them. Where the candidate
    comes back in the end, it is the first step at all that lies outside; None where none does. `sign` is +1 where the
    candidate is too high.
    """
    steps = candidate.steps
    if not len(steps):
        return None
    lost = ~np.isfinite(candidate.values)
    if lost.any() and all(np.isfinite(points.values).all() for points in baselines):
        return int(steps[int(np.argmax(lost))])
    own = _smooth(_scaled(candidate.values, logarithmic))
    others = [
        np.interp(steps, points.steps, _smooth(_scaled(points.values, logarithmic)))
        for points in baselines
        if len(points.steps)
    ]
    if not others:
        return None
    margin = SHARE * half_width
    with np.errstate(invalid="ignore"):
        edge = np.max(others, axis=0) + margin if sign > 0 else np.min(others, axis=0) - margin
        outside = own > edge if sign > 0 else own < edge
    outside |= ~np.isfinite(own) & np.isfinite(edge)
    if not outside.any():
        return None
    inside = np.flatnonzero(~outside)
    first = 0 if not len(inside) else int(inside[-1]) + 1
    return int(steps[first] if first < len(steps) else steps[int(np.argmax(outside))])


def _scaled(values: Array, logarithmic: bool) -> Array:
    if not logarithmic:
        return values
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(values)


def _smooth(values: Array) -> Array:
    """The median of each value and its neighbours within a twentieth of the curve; a step stays where it is."""
    reach = len(values) // 20
    if not reach or not np.isfinite(values).all():
        return values
    smooth: Array = ndimage.median_filter(values, size=2 * reach + 1, mode="nearest")
    return smooth
