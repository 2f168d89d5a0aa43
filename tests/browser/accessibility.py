"""What people need who see a page otherwise or have no mouse: axe-core's rules, and where the Tab key leads."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from tests.browser.chromium import Chromium

AXE = Path(__file__).with_name("axe") / "axe.min.js"
GRAVE = ("serious", "critical")

_CONTROLS = """
    [...document.querySelectorAll('a[href], button, summary, input, select, textarea, [role=button], [tabindex]')]
        .filter((e) => e.tabIndex >= 0 && e.checkVisibility({ visibilityProperty: true }) && !e.disabled)
"""
_FOCUSED = """(() => {
    const element = document.activeElement;
    if (!element || element === document.body || element === document.documentElement) return null;
    const { left, right, top, bottom, width, height } = element.getBoundingClientRect();
    const style = getComputedStyle(element);
    return {
        number: (window.controls ||= CONTROLS).indexOf(element),
        words: `${element.tagName.toLowerCase()} ${element.textContent.trim().slice(0, 60)}`,
        seen: width > 0 && height > 0 && right > 0 && left < innerWidth && bottom > 0 && top < innerHeight,
        ring: style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2,
    };
})()""".replace("CONTROLS", _CONTROLS)


@cache
def _axe() -> str:
    return AXE.read_text(encoding="utf-8")


def violations(browser: Chromium, impacts: tuple[str, ...] = GRAVE) -> list[str]:
    """What axe-core finds wrong in the page that is open: `rule (impact): element`, a line for each element."""
    if not browser.value("typeof axe == 'object'"):
        browser.call("Runtime.evaluate", expression=_axe())
    found = browser.value("axe.run().then(({ violations }) => JSON.stringify(violations))")
    return [
        f"{rule['id']} ({rule['impact']}): {' '.join(map(str, node['target']))}: {node['failureSummary']}"
        for rule in json.loads(found)
        if rule["impact"] in impacts
        for node in rule["nodes"]
    ]


def tab_through(browser: Chromium) -> tuple[list[dict[str, Any]], list[str]]:
    """Press Tab until it has gone round: every stop in order, and the controls that were never reached.

    A stop says whether it lies in the window (`seen`) and has a `ring` of at least 2 px.
    """
    browser.call("Emulation.setFocusEmulationEnabled", enabled=True)
    browser.value("document.activeElement?.blur(), scrollTo(0, 0), window.controls = undefined, 0")
    count = browser.value(f"(window.controls = {_CONTROLS}).length")
    stops: list[dict[str, Any]] = []
    reached: set[int] = set()
    for _ in range(2 * count + 5):
        browser.press("Tab")
        stop = browser.value(_FOCUSED)
        if stop is None or stop["number"] in reached:
            break
        reached.add(stop["number"])
        stops.append(stop)
    missed = [number for number in range(count) if number not in reached]
    return stops, [browser.value(f"window.controls[{number}].outerHTML.slice(0, 120)") for number in missed]
