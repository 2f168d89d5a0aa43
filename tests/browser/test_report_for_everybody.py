"""report.html for people who see otherwise, have no mouse, or read on paper."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.browser.accessibility import tab_through, violations
from tests.browser.chromium import Chromium
from tests.browser.pages import open_all, quiet, state
from tests.unit.report import fixture as reports
from trainscope.report.html import render_html
from trainscope.schema import to_json

ROOT = Path(__file__).parents[2]
PAPER = 718
"""Width of A4 between the browser's margins, in CSS pixels."""
ALL = ("minor", "moderate", "serious", "critical")


@pytest.mark.parametrize(
    ("width", "dark"),
    [
        (360, False),
        (1400, True),
        *(pytest.param(*other, marks=pytest.mark.slow) for other in ((360, True), (1400, False))),
    ],
)
def test_axe_finds_nothing(browser, page, width, dark):
    browser.open(page, width=width, dark=dark)
    open_all(browser)
    assert violations(browser, ALL) == []


def test_axe_would_find_something(browser, page):
    browser.open(page, width=800)
    browser.value(
        "document.querySelector('.quiet').style.color = '#ccc', document.querySelector('.sheet img').alt = '', 0"
    )
    assert [line.partition(" ")[0] for line in violations(browser)] == ["color-contrast"]


@pytest.mark.parametrize("width", [360, pytest.param(1400, marks=pytest.mark.slow)])
def test_tab_leads_to_every_control(browser, page, width):
    browser.open(page, width=width)
    for opened in (False, True):
        if opened:
            open_all(browser)
        stops, missed = tab_through(browser)
        assert missed == []
        assert [stop for stop in stops if not (stop["seen"] and stop["ring"])] == []
        assert stops[0]["words"] == "a Skip to the verdict"
        assert {stop["words"].partition(" ")[0] for stop in stops} >= {"a", "button", "summary", "img", "pre"}


def test_a_control_that_tab_misses_is_noticed(browser, page):
    browser.open(page, width=800)
    # Focusable, but not where it can be seen.
    browser.value(
        "Object.assign(document.querySelector('.copy').style, { position: 'fixed', right: '2000px', left: 'auto' }), 0"
    )
    stops, _ = tab_through(browser)
    assert [stop["words"] for stop in stops if not stop["seen"]] == ["button Copy"]


def test_the_enlarged_picture_keeps_the_focus_and_gives_it_back(browser, page):
    browser.open(page, width=800)
    browser.value("document.querySelector('.sheet img').focus()")
    browser.press("Enter")
    assert browser.value("document.querySelector('dialog').open")
    browser.press("Tab")
    assert browser.value("document.querySelector('dialog').contains(document.activeElement) || !document.hasFocus()")
    browser.press("Escape")
    assert not browser.value("document.querySelector('dialog').open")
    assert browser.value("document.activeElement === document.querySelector('.sheet img')")


def test_paper(browser, page, tmp_path):
    browser.open(page, width=1400, dark=True)
    browser.value(
        """addEventListener("beforeprint", () => {
            window.printed = {
                plots: document.querySelectorAll(".plot").length,
                empty: [...document.querySelectorAll(".plot")].filter((p) => !p.querySelector(".main-svg")).length,
                closed: document.querySelectorAll("details:not([open])").length,
                widest: Math.max(...[...document.querySelectorAll(".main-svg")].map((s) => s.clientWidth)),
            };
        }), 0"""
    )
    browser.pdf(tmp_path / "report.pdf")
    printed = browser.value("window.printed")
    assert printed.pop("plots") == 14
    assert printed.pop("widest") <= PAPER
    assert printed == {"empty": 0, "closed": 0}
    content = (tmp_path / "report.pdf").read_bytes()
    assert content.startswith(b"%PDF-")
    assert content.count(b"/Type /Page\n") > 5
    browser.wait("!document.querySelector('details[open] .plot:not([data-drawn])')")
    assert browser.value("document.querySelectorAll('details:not([open])').length") > 0, "folded again"


def test_nothing_is_cut_off_on_paper_and_its_colours_are_light(browser, page):
    browser.open(page, width=PAPER, dark=True)
    browser.value("dispatchEvent(new Event('beforeprint')), 0")
    browser.call("Emulation.setEmulatedMedia", media="print")
    browser.wait("!document.querySelector('.plot:not([data-drawn])')")
    browser.value(
        "window.shown = [...document.querySelectorAll('main *')].filter((e) => e.checkVisibility()"
        " && !e.closest('.visually-hidden, svg')), 0"
    )
    words = "map((e) => e.outerHTML.slice(0, 80))"
    beyond = f"shown.filter((e) => e.getBoundingClientRect().right > {PAPER + 1}).{words}"
    assert browser.value(beyond) == []
    cut = "shown.filter((e) => e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).overflowX !== 'visible')"
    assert browser.value(f"{cut}.{words}") == []
    assert browser.value("getComputedStyle(document.documentElement).backgroundColor") == "rgb(255, 255, 255)"
    ink = browser.value("getComputedStyle(document.querySelector('.xtick text')).fill")
    assert ink == "rgb(85, 85, 85)"
    browser.call("Emulation.setEmulatedMedia", media="")


@pytest.mark.parametrize("kind", ["clean_report", "unobservable_report"])
def test_reports_with_little_to_say(browser, tmp_path, kind):
    file = tmp_path / "report.html"
    file.write_text(render_html(to_json(getattr(reports, kind)()), tmp_path), encoding="utf-8")
    browser.open(file, width=360)
    assert state(browser) == quiet(360)
    assert violations(browser, ALL) == []
    headed = "[...document.querySelectorAll('main > section')].filter((s) => s.children.length < 2).length"
    assert browser.value(headed) == 0, "no section is a heading alone"


def test_where_there_is_no_chromium_it_is_said_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="sudo apt-get install chromium"):
        Chromium(tmp_path)


def test_make_says_it_too(tmp_path):
    """`make test` begins with `make browser`, which installs it where it may."""
    for name in ("sh", "make"):
        (tmp_path / name).symlink_to(shutil.which(name) or name)
    somebody = tmp_path / "id"
    somebody.write_text("#!/bin/sh\necho 1000\n", encoding="utf-8")
    somebody.chmod(0o755)
    done = subprocess.run(
        [tmp_path / "make", "browser"],
        cwd=ROOT,
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "sudo apt-get install chromium" in done.stdout
