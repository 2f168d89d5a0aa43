"""comparison.html in a real browser: drawn, quiet, offline, as wide as the screen, and for everybody."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.browser.accessibility import tab_through, violations
from tests.browser.pages import BACKGROUND, EVIL, LONG, look, open_all, quiet, state
from tests.unit.report.comparison import three_runs
from trainscope.report.compare import render_comparison

ALL = ("minor", "moderate", "serious", "critical")
PAPER = 718
"""Width of A4 between the browser's margins, in CSS pixels."""
LINES = "[...document.querySelectorAll('#figure-1 .scatterlayer .trace')].filter((t) => t.querySelector('.js-line'))"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    file = folder / "comparison.html"
    file.write_text(render_comparison(three_runs(folder)), encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("width", "dark"),
    [
        (360, False),
        (1280, True),
        *(
            pytest.param(*other, marks=pytest.mark.slow)
            for other in ((360, True), (800, False), (800, True), (1280, False))
        ),
    ],
)
def test_every_screen(browser, page, tmp_path, width, dark):
    browser.open(page, width=width, dark=dark)
    assert state(browser) == quiet(width)
    shown = "[...document.querySelectorAll('main .plot')].filter((p) => !p.closest('details:not([open])'))"
    assert browser.value(f"{shown}.length") == 4
    assert browser.value(f"{shown}.every((p) => p.dataset.drawn)")
    assert browser.value("[...document.querySelectorAll('.sheet img')].every((i) => i.naturalWidth == 64)")
    open_all(browser)
    assert state(browser) == quiet(width)
    picture = look(browser, tmp_path / "page.png")
    assert picture.getpixel((2, 2)) == BACKGROUND[dark]


def test_runs_are_told_apart_without_colours_and_the_legend_says_so(browser, page):
    browser.open(page, width=800)
    strokes = browser.value(
        f"{LINES}.map((t) => [t.querySelector('.js-line').style.strokeDasharray,"
        " t.querySelector('.point').getAttribute('d')])"
    )
    assert len(strokes) == 3
    assert len({tuple(stroke) for stroke in strokes}) == 3
    assert len({dash for dash, _ in strokes}) == 3
    colours = browser.value(f"{LINES}.map((t) => getComputedStyle(t.querySelector('.js-line')).stroke)")
    legend = browser.value(
        "[...document.querySelectorAll('#curves > .legend .look')].map((s) => getComputedStyle(s).color)"
    )
    assert colours == legend
    assert browser.value("document.querySelectorAll('.plot .legend').length") == 0, "one legend for all figures"
    names = "[...document.querySelectorAll('#curves > .legend span')].map((s) => s.textContent)"
    assert browser.value(names)[:3] == ["base", "hot", "watched"]


def test_steps_that_are_not_finite_are_marked_in_the_runs_colour(browser, page):
    browser.open(page, width=800)
    marks = "[...document.querySelectorAll('#figure-1 .scatterlayer .trace')].at(-1)"
    assert browser.value(f"{marks}.querySelectorAll('.point').length") == 3
    hot = browser.value("getComputedStyle(document.querySelectorAll('#curves > .legend .look')[1]).color")
    assert browser.value(f"getComputedStyle({marks}.querySelector('.point')).fill") == hot


@pytest.mark.parametrize(
    ("width", "dark"),
    [
        (360, True),
        (1400, False),
        *(pytest.param(*other, marks=pytest.mark.slow) for other in ((360, False), (1400, True))),
    ],
)
def test_axe_finds_nothing(browser, page, width, dark):
    browser.open(page, width=width, dark=dark)
    open_all(browser)
    assert violations(browser, ALL) == []


def test_tab_leads_to_every_control(browser, page):
    browser.open(page, width=360)
    open_all(browser)
    stops, missed = tab_through(browser)
    assert missed == []
    assert [stop for stop in stops if not (stop["seen"] and stop["ring"])] == []
    assert {stop["words"].partition(" ")[0] for stop in stops} >= {"a", "summary", "img", "div"}


def test_paper(browser, page):
    browser.open(page, width=PAPER, dark=True)
    browser.value("dispatchEvent(new Event('beforeprint')), 0")
    browser.call("Emulation.setEmulatedMedia", media="print")
    browser.wait("!document.querySelector('.plot:not([data-drawn])')")
    beyond = f"[...document.querySelectorAll('main *')].filter((e) => e.getBoundingClientRect().right > {PAPER + 1})"
    assert browser.value(f"{beyond}.map((e) => e.outerHTML.slice(0, 80))") == []
    assert browser.value("getComputedStyle(document.documentElement).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.value("getComputedStyle(document.querySelector('.look-0')).color") == "rgb(0, 104, 168)"
    browser.call("Emulation.setEmulatedMedia", media="")


def test_a_sample_is_enlarged_and_the_arrows_go_along_its_run(browser, page):
    browser.open(page, width=800)
    browser.value("document.querySelector('.sheet img').focus()")
    browser.press("Enter")
    assert browser.value("document.querySelector('dialog').open")
    assert browser.value("document.querySelector('dialog img').alt") == "base, step 0: a red circle"
    browser.press("ArrowRight")
    assert browser.value("document.querySelector('dialog img').alt") == "base, step 10: a red circle"
    browser.press("Escape")


def test_curves_can_be_cut_where_most_runs_end(browser, page, tmp_path):
    browser.open(page, width=800)
    assert browser.value("document.querySelector('.until')") is None, "of runs that are about as long"
    comparison = three_runs(tmp_path)
    comparison["runs"][0]["last_step"] = 100
    comparison["curves"][0]["lines"]["base"].update(step=[0, 100], value=[1.0, 0.1])
    file = tmp_path / "comparison.html"
    file.write_text(render_comparison(comparison), encoding="utf-8")
    browser.open(file, width=800)
    last = "document.getElementById('figure-1')._fullLayout.xaxis.range[1]"
    assert browser.value(last) == pytest.approx(102)
    for pressed, end in ((True, 61.2), (False, 102)):
        browser.value("document.querySelector('.until').click()")
        browser.wait(f"Math.abs(({last}) - {end}) < 1e-6")
        state_of = "document.querySelector('.until').getAttribute('aria-pressed')"
        assert browser.value(state_of) == str(pressed).lower()
    assert state(browser) == quiet(800)


def test_hostile_and_endless_names_run_nothing_and_break_nothing(browser, tmp_path):
    comparison = three_runs(tmp_path)
    comparison["summary"] += EVIL
    comparison["notes"] = [EVIL, LONG]
    for run, more in zip(comparison["runs"], (EVIL, LONG, EVIL), strict=True):
        run.update(label=run["label"] + more, headline=more)
    for overlay in comparison["curves"]:
        overlay["title"] += EVIL
        overlay["lines"] = {f"{label}{EVIL}": columns for label, columns in overlay["lines"].items()}
    for sample in comparison["samples"]:
        sample["prompt"] += EVIL
    for row in (*comparison["config"]["differing"], *comparison["observed"]["differing"]):
        row["key"] += LONG
        for setting in row["settings"]:
            setting.update(value=f"{setting['value']}{EVIL}{LONG}")
    for row in comparison["findings"]:
        row.update(code=row["code"] + EVIL, summary=row["summary"] + LONG)
        for cell in row["cells"]:
            cell["message"] += EVIL
    file = tmp_path / "comparison.html"
    file.write_text(render_comparison(comparison), encoding="utf-8")
    browser.open(file, width=360)
    assert state(browser) == quiet(360)
    assert browser.value("typeof window.pwned") == "undefined"
    assert browser.value("document.querySelectorAll('img[src=x], a[href^=javascript], svg a, svg b').length") == 0


@pytest.mark.slow
def test_eight_runs_fit_a_phone(browser, tmp_path):
    comparison = three_runs(tmp_path)
    first = comparison["runs"][0]
    comparison["runs"] = [{**first, "label": f"a-run-with-a-name-{number}"} for number in range(8)]
    for overlay in comparison["curves"]:
        columns = overlay["lines"]["base"]
        overlay["lines"] = {run["label"]: {**columns, "run": n} for n, run in enumerate(comparison["runs"])}
    for name in ("config", "implied", "environment", "observed"):
        for row in comparison[name]["differing"]:
            row["settings"] = [row["settings"][0]] * 8
    for row in comparison["findings"]:
        row["cells"] = [row["cells"][0]] * 8
    for row in comparison["numbers"]:
        row["values"] = [row["values"][0]] * 8
    file = tmp_path / "comparison.html"
    file.write_text(render_comparison(comparison), encoding="utf-8")
    for width in (360, 1400):
        browser.open(file, width=width)
        assert state(browser) == quiet(width)
        assert browser.value(f"{LINES}.length") == 8
        height = browser.value("document.querySelector('#curves > .legend').offsetHeight")
        assert height < 180, "the legend stays in sight: it must leave room for the curves"
