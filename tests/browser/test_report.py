"""report.html in a real browser: drawn, quiet, offline, as wide as the screen."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
from PIL import Image

from trainscope.report.html import render_html
from trainscope.schema import to_json

HERE = Path(__file__).parent


def _load(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


reports = _load("report_fixture_for_browser", HERE.parent / "unit" / "report" / "fixture.py")
chromium = _load("browser_chromium", HERE / "chromium.py")

EVIL = (
    '"></script><img src=x onerror="window.pwned=1"><script>window.pwned=1</script>'
    '<a href="javascript:window.pwned=1">x</a><b>'
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    try:
        started = chromium.Chromium(tmp_path_factory.mktemp("chromium"))
    except FileNotFoundError as error:
        pytest.fail(str(error))
    yield started
    started.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    file = run / "report.html"
    file.write_text(render_html(to_json(reports.s0_report(run)), run), encoding="utf-8")
    return file


def state(browser):
    """What the page says of itself, and what the network saw."""
    data = browser.value("({...document.body.dataset})")
    loaded = [address for address in browser.requests if not address.startswith(("data:", "file:"))]
    return {**data, "loaded": loaded, "width": browser.value("document.documentElement.scrollWidth")}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 800, 1280])
def test_every_screen(browser, page, tmp_path, width, dark):
    browser.open(page, width=width, dark=dark)
    assert state(browser) == {"ready": "true", "overflow": "false", "loaded": [], "width": width}
    plots = browser.value(
        "[...document.querySelectorAll('main .plot')].filter((p) => !p.closest('details:not([open])')).length"
    )
    assert plots == 12
    assert browser.value("document.querySelectorAll('.plot[data-drawn]').length") == plots
    assert browser.value("[...document.images].every((i) => !i.src || i.naturalWidth == 64)")
    shot = tmp_path / "page.png"
    browser.screenshot(shot)
    assert shot.stat().st_size > 50_000
    # axes are drawn in the theme's own ink
    colour = browser.value("getComputedStyle(document.querySelector('.xtick text')).fill")
    assert colour == ("rgb(166, 162, 154)" if dark else "rgb(99, 96, 90)")


def test_thresholds_and_places_are_drawn(browser, page):
    browser.open(page, width=1280)
    texts = browser.value("[...document.querySelectorAll('.annotation-text')].map((t) => t.textContent)")
    assert {"threshold 0.5 · PREC001", "threshold 1.5e-6 · PRO001", "step 11 · PRO001"} <= set(texts)
    assert browser.value("document.querySelectorAll('#figure-3 .shapelayer path').length") == 1


def test_opening_the_details_draws_their_plots_and_nothing_overflows(browser, page):
    browser.open(page, width=360)
    browser.value("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    browser.wait("!document.querySelector('.plot:not([data-drawn])')")
    assert browser.value("document.documentElement.scrollWidth") == 360
    assert "errors" not in state(browser)


def test_a_change_of_theme_and_printing_redraw(browser, page):
    browser.open(page, width=800)
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    ink = "getComputedStyle(document.querySelector('.xtick text')).fill"
    browser.wait(f"{ink} == 'rgb(166, 162, 154)'")
    browser.value("dispatchEvent(new Event('beforeprint'))")
    browser.wait(f"{ink} == 'rgb(99, 96, 90)'")
    assert browser.value("document.querySelectorAll('details:not([open])').length") == 0
    browser.value("dispatchEvent(new Event('afterprint'))")
    assert browser.value("document.querySelectorAll('details:not([open])').length") > 0


def test_the_keyboard_reaches_what_can_be_done(browser, page):
    browser.open(page, width=1280)
    assert browser.value("[...document.querySelectorAll('.copy')].every((b) => !b.hidden)")
    browser.value("document.querySelector('.copy').click()")
    browser.wait("document.querySelector('.copy').textContent == 'Copied'")
    enter = "new KeyboardEvent('keydown', { key: 'Enter', bubbles: true })"
    browser.value(f"document.querySelector('.sheet img').dispatchEvent({enter})")
    assert browser.value("document.querySelector('dialog').open")
    seen = []
    for key in ("ArrowRight", "ArrowRight", "ArrowRight", "ArrowLeft"):
        arrow = f"new KeyboardEvent('keydown', {{ key: '{key}', bubbles: true }})"
        browser.value(f"document.querySelector('dialog').dispatchEvent({arrow})")
        seen.append(browser.value("document.querySelector('dialog img').alt").partition(",")[0])
    assert seen == ["Step 50", "Step 100", "Step 150", "Step 100"]
    assert browser.value("document.querySelector('dialog a').hidden")


def test_a_long_contact_sheet_with_large_pictures(browser, tmp_path):
    report = to_json(reports.s0_report(tmp_path))
    sample = report["samples"][0]
    report["samples"] = [
        {**sample, "step": step, "weights": weights, "path": f"samples/{weights}-{step}.png", "distance": 0.01}
        for weights in ("raw", "ema")
        for step in range(0, 2100, 100)
    ]
    for one in report["samples"]:
        noise = Image.effect_noise((512, 768), 60).convert("RGB")
        noise.save(tmp_path / one["path"])
    file = tmp_path / "report.html"
    file.write_text(render_html(report, tmp_path), encoding="utf-8")
    for width in (360, 800, 1400):
        browser.open(file, width=width)
        assert state(browser) == {"ready": "true", "overflow": "false", "loaded": [], "width": width}
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


def test_hostile_texts_run_nothing(browser, tmp_path):
    report = to_json(reports.s0_report(tmp_path))
    report["verdict"] += EVIL
    report["config"] += f"# {EVIL}"
    for series in report["series"]:
        series["title"] += EVIL
        series["lines"] = {f"{name}{EVIL}": line for name, line in series["lines"].items()}
    for measure in report["map"]:
        measure["modules"] = [f"{module}{EVIL}" for module in measure["modules"]]
    for sample in report["samples"]:
        sample["prompt"] += EVIL
    for finding in report["findings"]:
        finding.update(message=finding["message"] + EVIL, code=finding["code"] + EVIL)
        finding["where"] = [{**place, "name": place["name"] + EVIL} for place in finding["where"]]
        finding["references"] = [{"url": "javascript:window.pwned=1", "claim": EVIL}]
    file = tmp_path / "report.html"
    file.write_text(render_html(report, tmp_path), encoding="utf-8")
    browser.open(file, width=360)
    assert state(browser) == {"ready": "true", "overflow": "false", "loaded": [], "width": 360}
    assert browser.value("typeof window.pwned") == "undefined"
    assert browser.value("document.querySelectorAll('img[src=x], a[href^=javascript], svg a, svg b').length") == 0


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
    assert state(browser) == {"ready": "true", "overflow": "false", "loaded": [], "width": 800}
