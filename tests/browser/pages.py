"""What tests ask of any of our pages, and texts that would like to run something there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from tests.browser.chromium import Chromium

EVIL = (
    '"></script><img src=x onerror="window.pwned=1"><script>window.pwned=1</script>'
    '<a href="javascript:window.pwned=1">x</a><b>\u2028\u2029\u202e\0'
)
LONG = "x" * 10_000
BACKGROUND = {False: (0xFA, 0xF9, 0xF6), True: (0x14, 0x14, 0x16)}
"""Of a page, by whether it is dark."""
OPEN_ALL = "document.querySelectorAll('details').forEach((d) => { d.open = true; })"


def state(browser: Chromium) -> dict[str, Any]:
    """What the page says of itself, and what the network saw."""
    data = browser.value("({...document.body.dataset})")
    loaded = [address for address in browser.requests if not address.startswith(("data:", "file:"))]
    width = browser.value("document.documentElement.scrollWidth")
    return {**data, "console": browser.console, "loaded": loaded, "width": width}


def quiet(width: int) -> dict[str, Any]:
    """The state of a page that is drawn, loads nothing, complains of nothing and is as wide as the screen."""
    return {"ready": "true", "overflow": "false", "console": [], "loaded": [], "width": width}


def open_all(browser: Chromium) -> None:
    """Open every fold, and wait for the figures in them."""
    browser.value(OPEN_ALL)
    browser.wait("!document.querySelector('.plot:not([data-drawn])')")


def look(browser: Chromium, shot: Path) -> Image.Image:
    """A screenshot of the whole page, checked not to be blank."""
    browser.screenshot(shot)
    picture = Image.open(shot).convert("RGB")
    assert picture.size == tuple(browser.value("[innerWidth, document.documentElement.scrollHeight]")), (
        "the whole page is in the picture"
    )
    colours = picture.getcolors(picture.width * picture.height)
    assert colours is not None
    assert len(colours) > 200
    assert max(count for count, _ in colours) < 0.9 * picture.width * picture.height
    return picture
