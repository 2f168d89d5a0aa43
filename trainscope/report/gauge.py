"""Where a finding's values lie beside its threshold: a number line, for what no curve over the steps can show.

Positions alone; must not know HTML.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from trainscope.report.wording import number

MOST_DOTS = 60
MARGIN = 12.0
"""Percent of the line's length that is left free at each end."""
DECADES = 1.3
"""From this ratio on, in powers of ten, the scale is logarithmic: on a linear one small values are all 0."""


@dataclass(frozen=True)
class Gauge:
    """Positions in percent of the line; `bad_from` and `bad_to` bound the side where the rule fires."""

    value: float
    threshold: float
    dots: list[float]
    bad_from: float
    bad_to: float
    log: bool


def gauge(finding: dict[str, Any]) -> Gauge | None:
    """The line of a finding: its value, its threshold, and the values of its places; None where there is no side.

    A value that equals the threshold is on neither.
    """
    value, threshold = number(finding["value"]), number(finding["threshold"])
    if value is None or threshold is None or value == threshold:
        return None
    known = [number(place["value"]) for place in finding["where"][:MOST_DOTS]]
    places = [each for each in known if each is not None]
    every = [value, threshold, *places]
    log = min(every) > 0 and math.log10(max(every) / min(every)) > DECADES
    low, high = min(every), max(every)
    if log:
        low, high = math.log10(low), math.log10(high)
    elif low > 0:
        low = 0.0
    elif high < 0:
        high = 0.0

    def place(each: float) -> float:
        share = ((math.log10(each) if log else each) - low) / (high - low)
        return MARGIN + share * (100 - 2 * MARGIN)

    limit = place(threshold)
    below = value < threshold
    return Gauge(
        place(value), limit, [place(each) for each in places], 0 if below else limit, limit if below else 100, log
    )
