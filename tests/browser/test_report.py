"""report.html in a real browser: drawn, quiet, offline, as wide as the screen."""

from __future__ import annotations

import pytest
from PIL import Image

from tests.browser.pages import BACKGROUND, EVIL, LONG, look, open_all, quiet, state
from tests.unit.report import fixture as reports
from trainscope.report.html import render_html
from trainscope.schema import to_json

SECTIONS = ("diagnoses", "samples", "curves", "map", "resumes", "unseen", "rules", "facts")


INK = "getComputedStyle(document.querySelector('.xtick text')).fill"
INKS = {False: "rgb(99, 96, 90)", True: "rgb(166, 162, 154)"}


@pytest.mark.parametrize("width", [360, 800, 1400])
def test_every_screen_in_both_themes(browser, page, tmp_path, width):
    browser.open(page, width=width)
    assert state(browser) == quiet(width)
    plots = browser.value(
        "[...document.querySelectorAll('main .plot')].filter((p) => !p.closest('details:not([open])')).length"
    )
    assert plots == 12
    assert browser.value("document.querySelectorAll('.plot[data-drawn]').length") == plots
    assert browser.value("[...document.images].every((i) => !i.src || i.naturalWidth == 64)")
    assert browser.value("[...document.querySelectorAll('main > [id]')].map((e) => e.id)") == list(SECTIONS)
    for dark in (False, True):
        browser.theme(dark=dark)
        browser.wait(f"{INK} == '{INKS[dark]}'")  # axes are drawn in the theme's own ink
        shot = look(browser, tmp_path / f"report-{width}-{'dark' if dark else 'light'}.png")
        assert shot.getpixel((2, 2)) == BACKGROUND[dark]
    assert state(browser) == quiet(width)


def test_the_remedy_is_on_the_first_screen(browser, page):
    for width in (360, 1400):
        browser.open(page, width=width)
        assert browser.value("document.querySelector('.remedy.first h4').getBoundingClientRect().bottom") < 900
        order = browser.value("[...document.querySelectorAll('#card-1 h3')].map((h) => h.textContent)")
        assert order[:4] == ["What to do", "What is seen", "How it comes about", "Why"]


def test_thresholds_and_places_are_drawn(browser, page):
    browser.open(page, width=1280)
    texts = browser.value("[...document.querySelectorAll('.annotation-text')].map((t) => t.textContent)")
    assert {"threshold 0.5 · PREC001", "threshold 1.5e-6 · PRO001", "PRO001: steps 11–150"} <= set(texts)
    # the first step of the place, its span, and the resume
    assert browser.value("document.querySelectorAll('#figure-3 .shapelayer path').length") == 3


def test_opening_the_details_draws_their_plots_and_nothing_overflows(browser, page):
    browser.open(page, width=360)
    open_all(browser)
    assert state(browser) == quiet(360)


def test_the_keyboard_reaches_what_can_be_done(browser, page):
    browser.open(page, width=1280)
    assert browser.value("[...document.querySelectorAll('.copy')].every((b) => !b.hidden)")
    browser.value("document.querySelector('.copy').click()")
    browser.wait("document.querySelector('.copy').textContent == 'Copied'")
    browser.value("document.querySelector('.sheet img').focus()")
    browser.press("Enter")
    assert browser.value("document.querySelector('dialog').open")
    seen = []
    for key in ("ArrowRight", "ArrowRight", "ArrowRight", "ArrowLeft"):
        browser.press(key)
        seen.append(browser.value("document.querySelector('dialog img').alt").partition(",")[0])
    assert seen == ["Step 50", "Step 100", "Step 150", "Step 100"]
    assert browser.value("document.querySelector('dialog a').hidden")


def test_a_long_contact_sheet_with_large_pictures(browser, tmp_path):
    report = to_json(reports.s0_report(tmp_path))
    sample = report["samples"][0]
    report["samples"] = [
        {**sample, "step": step, "weights": weights, "path": f"samples/{weights}-{step}.png", "distance": 0.01}
        for weights in ("raw", "ema")
        for step in range(0, 1300, 100)
    ]
    for one in report["samples"]:
        noise = Image.effect_noise((512, 768), 60).convert("RGB")
        noise.save(tmp_path / one["path"], compress_level=1)
    file = tmp_path / "report.html"
    file.write_text(render_html(report, tmp_path), encoding="utf-8")
    for width in (360, 1400):
        browser.open(file, width=width)
        assert state(browser) == quiet(width)
        assert browser.value("[...document.querySelectorAll('.sheet img')].every((i) => i.naturalHeight == 256)")
        assert browser.value("document.querySelectorAll('.sheet img').length") == 20
    # A wide screen shows all of it at once.
    assert browser.value(
        "(({ scrollWidth: all, clientWidth: room }) => all <= room)(document.querySelector('.sheet .scroll'))"
    )
    browser.value("document.querySelector('.sheet img').click()")
    assert browser.value("document.querySelector('dialog a').getAttribute('href')") == "./samples/raw-0.png"
    # So does paper.
    browser.open(file, width=700)
    browser.call("Emulation.setEmulatedMedia", media="print")
    assert browser.value("document.querySelector('.sheet table').getBoundingClientRect().right") <= 700
    browser.call("Emulation.setEmulatedMedia", media="")


def test_without_scripts_the_text_is_there(browser, page):
    browser.open(page, width=800, scripts=False)
    text = browser.value("document.querySelector('main').innerText")
    for part in (
        "round every update away",
        'weights = "fp32"',
        "Steps 1–150: 1e-6 → 1.01e-6",
        "Drawing the curves needs JavaScript",
    ):
        assert part in text
    assert browser.value("document.documentElement.scrollWidth") == 800


@pytest.mark.parametrize("evil", [EVIL, LONG], ids=["markup", "long"])
def test_hostile_texts_run_nothing_and_widen_nothing(browser, tmp_path, evil):
    report = to_json(reports.s0_report(tmp_path))
    report["verdict"] += evil
    report["config"] += f"# {evil.replace(chr(0), '')}"
    report["run"] |= {"name": evil, "path": f"/tmp/{evil}", "given": {f"train.{evil}": evil, "optimizer.lr": evil}}
    report["facts"].append({"name": evil, "value": evil})
    for series in report["series"]:
        series["title"] += evil
        series["about"] += evil
        series["lines"] = {f"{name}{evil}": line for name, line in series["lines"].items()}
    for measure in report["map"]:
        measure["modules"] = [f"{module}{evil}" for module in measure["modules"]]
    for sample in report["samples"]:
        sample["prompt"] += evil
    for resume in report["resumes"]:
        resume["source"] = evil
        resume["pieces"][evil] = {evil: 1}
        for piece in (*resume["differing"], *resume["changed"]):
            piece.update(dict.fromkeys(("param", "key", "saved", "loaded", "asked"), evil))
    for finding in report["findings"]:
        finding.update(message=finding["message"] + evil, code=finding["code"] + evil)
        finding["where"] = [{**place, "name": place["name"] + evil} for place in finding["where"]]
        finding["references"] = [{"url": "javascript:window.pwned=1", "claim": evil}]
        finding["evidence"][evil] = evil
    file = tmp_path / "report.html"
    file.write_text(render_html(report, tmp_path), encoding="utf-8")
    browser.open(file, width=360)
    assert state(browser) == quiet(360)
    open_all(browser)
    assert state(browser) == quiet(360)
    assert browser.value("typeof window.pwned") == "undefined"
    assert browser.value("document.querySelectorAll('img[src=x], a[href^=javascript], svg a, svg b').length") == 0
    text = browser.value("document.body.textContent + document.title")
    assert not {"\0", "\u202e"} & set(text), "neither NUL nor a text that runs backwards"


def test_empty_curves_and_maps_draw(browser, tmp_path):
    report = to_json(reports.clean_report())
    nothing = {"step": [1, 2], "value": ["NaN", None]}
    report["series"] = [
        {"name": f"s{log}", "title": "s", "unit": unit, "log_scale": log, "lines": lines}
        for log, unit, lines in (
            (True, "", {"a": nothing}),
            (False, "share", {}),
            (True, "", {"a": {"step": [1], "value": [0.0]}}),
        )
    ]
    report["map"] = [
        {"name": "m", "title": "m", "unit": "", "modules": ["a"], "steps": [1], "values": [[value]]}
        for value in (None, 0.0, 3.0)
    ]
    file = tmp_path / "report.html"
    file.write_text(render_html(report, tmp_path), encoding="utf-8")
    browser.open(file, width=800)
    assert state(browser) == quiet(800)
