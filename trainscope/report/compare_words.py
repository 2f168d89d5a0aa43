"""How a comparison of runs is put into words, for the page and the console.

Works on comparison.json's plain values. Must not know HTML, terminals or how runs are compared.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from trainscope.report import wording
from trainscope.report.gate import value as in_unit

Json = dict[str, Any]

OUTCOMES = {
    "fired": "found",
    "clear": "clear",
    "not_applicable": "not applicable",
    "not_observable": "not observable",
    "crashed": "the rule crashed",
    "not_asked": "not asked",
}


def run_state(run: Json) -> str:
    """Say how far a run came: `running, up to step 40 of 100`."""
    planned, last = run["planned_steps"], wording.brief(run["last_step"])
    of = f" of {wording.brief(planned)}" if planned and planned != run["last_step"] else ""
    if run["status"] == "running":
        return f"running, up to step {last}{of}"
    return f"{wording.one_line(run['status'])} at step {last}{of}"


def finding_counts(run: Json) -> str:
    """Say how much was found: `2 errors, 1 note`."""
    nouns = {"error": "error", "warning": "warning", "info": "note"}
    told = [wording.counted(count, nouns.get(name, name)) for name, count in run["findings"].items() if count]
    return ", ".join(told) or "nothing found"


def unseen(run: Json) -> str:
    """Say how many rules could not look; empty where all could."""
    return f"{wording.counted(run['unseen'], 'rule')} could not look" if run["unseen"] else ""


def worst(run: Json) -> str:
    """The severity of a run's gravest finding; empty where it has none."""
    return next((name for name, count in run["findings"].items() if count), "")


def shared_findings(comparison: Json) -> str:
    """Say which runs have the findings: `2 in all runs; 3 only in lr4`."""
    runs = [run["label"] for run in comparison["runs"]]
    where: Counter[tuple[int, ...]] = Counter(
        tuple(index for index, cell in enumerate(row["cells"]) if cell["outcome"] == "fired")
        for row in comparison["findings"]
    )
    parts = [
        f"{count} in all runs" if len(have) == len(runs) else f"{count} only in {runs[have[0]]}"
        for have, count in where.items()
        if len(have) in (1, len(runs))
    ]
    some = sum(count for have, count in where.items() if 1 < len(have) < len(runs))
    return "; ".join(parts + ([f"{some} in some of them"] if some else []))


def setting_text(setting: Json) -> str:
    """Write a run's value of a key."""
    if setting["known"] == "no such key":
        return wording.NONE
    if setting["known"] == "not recorded":
        return "not recorded"
    if setting["value"] is None:
        return "not set"
    # What follows by arithmetic has more digits than a reader wants.
    return wording.brief(setting["value"]) if setting["origin"] == "derived" else _value_text(setting["value"])


def _value_text(value: Any) -> str:
    """Write a value as it stands in cfg.toml: a learning rate in full, and not in three digits."""
    if isinstance(value, str):
        return wording.one_line(value.strip('"'))  # the log has an infinite number as JSON text
    if not isinstance(value, float) or not math.isfinite(value):
        return wording.brief(value)
    if value.is_integer() and abs(value) >= 10_000:
        return f"{value:,.0f}"
    return f"{value:.6g}".replace("e-0", "e-")


def earlier_text(past: Json) -> str:
    """Write what a key was before a resume: `0.001 up to step 60`."""
    value = "not set" if past["value"] is None else _value_text(past["value"])
    return f"{value} up to step {wording.brief(past['until'])}"


def unusual(settings: Sequence[Json], setting: Json) -> bool:
    """Whether most runs have another value than this one."""
    texts = Counter(setting_text(each) for each in settings)
    common, count = texts.most_common(1)[0]
    return 2 * count > len(settings) and setting_text(setting) != common


def number_groups(comparison: Json) -> list[tuple[str, list[Json]]]:
    """The rows of numbers under their headings."""
    groups: dict[str, list[Json]] = {}
    for row in comparison["numbers"]:
        groups.setdefault(row["group"], []).append(row)
    return list(groups.items())


def number_text(value: Any, unit: str) -> str:
    """Write a number in its unit."""
    if value is None:
        return wording.NONE
    found = wording.number(value)
    if found is None:
        return wording.brief(value)
    if unit == "s":
        return _time_text(found)
    if unit == "bytes":
        return in_unit(found, unit)
    return wording.brief(int(found) if unit and found == int(found) else found)


def _time_text(seconds: float) -> str:
    if seconds < 120:
        return in_unit(seconds, "s")
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
