"""Which rows of a log are the run's history, once resumes have superseded some of them.

Knows steps and segments; nothing of files, SQL or frames.
"""

from __future__ import annotations

from collections.abc import Sequence

RAW_SUFFIX = "_all"
"""`groups` is the surviving history, `groups_all` has every row that was ever written."""


def last_steps(segment_starts: Sequence[int]) -> list[int | None]:
    """The last step of each segment that counts; None where no later segment began before.

    A row of segment s at step t survives unless a later segment started at a step before t.
    """
    found: list[int | None] = []
    least: int | None = None
    for start in reversed(segment_starts):
        found.append(least)
        least = start if least is None else min(least, start)
    return found[::-1]
