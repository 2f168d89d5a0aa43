"""The report of a real run that has everything: Prodigy, an average, samples of both, a resume that lost state."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.browser.accessibility import violations
from tests.browser.chromium import Chromium
from tests.browser.pages import open_all, quiet, state
from trainscope.cli.auditing import audit_run, write_reports
from trainscope.config.load import parse_config
from trainscope.trainer.train import train

CONFIG = """
[run]
name = "everything"
seed = 1
device = "cpu"
[model]
base = "tiny:sd15"
[train]
method = "finetune"
steps = {steps}
batch_size = 2
[data]
dir = "{shapes}"
resolution = 64
[optimizer]
type = "prodigy"
lr = 1.0
[ema]
enabled = true
decay = 0.9
[eval]
every_steps = 10
[sample]
every_steps = 10
prompts = ["a red circle"]
steps = 2
[probes]
every = 1
[checkpoint]
save_state = false
"""
CURVES = {
    *("eval_loss", "train_loss", "loss_by_timestep", "effective_lr", "d", "delivered", "relative_distance"),
    *("ema_lag", "ema_delivered", "update_ratio"),
}
SHAPES = Path(__file__).parents[2] / "examples" / "shapes"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained for 20 steps, resumed for 20 more, audited."""
    place = tmp_path_factory.mktemp("run") / "everything"
    for steps, resume in ((20, None), (40, "latest")):
        train(parse_config(CONFIG.format(steps=steps, shapes=SHAPES)), out=place, resume=resume)
    write_reports(audit_run(place), place, {kind: place / f"report.{kind}" for kind in ("json", "html")})
    return place


@pytest.fixture(scope="module")
def report(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "report.json").read_text(encoding="utf-8"))
    return found


def test_everything_is_in_the_report(report: dict[str, Any]) -> None:
    assert {series["name"] for series in report["series"]} >= CURVES
    assert [measure["name"] for measure in report["map"]] == ["update_ratio", "delivered"]
    assert {(sample["step"], sample["weights"]) for sample in report["samples"]} == {
        (step, weights) for step in (0, 10, 20, 30, 40) for weights in ("raw", "ema")
    }
    [resume] = report["resumes"]
    assert resume["step"] == 20
    assert resume["pieces"]["weights"].keys() == {"match"}
    assert resume["pieces"]["optimizer"].keys() == {"missing"}
    assert ("optimizer", "missing") in {(piece["item"], piece["status"]) for piece in resume["differing"]}
    assert {"torch", "diffusers", "Optimizer", "Precision"} <= {fact["name"] for fact in report["facts"]}


def test_everything_is_on_the_page(browser: Chromium, run: Path, report: dict[str, Any]) -> None:
    browser.open(run / "report.html", width=800)
    open_all(browser)
    assert state(browser) == quiet(800)
    assert violations(browser) == []
    shown = browser.value("document.querySelector('main').innerText")
    for series in (*report["series"], *report["map"]):
        assert series["title"] in shown
        assert series["about"] in shown
    for text in ("Raw weights above, EMA below", "did not come over", "Not observable", "torch", "proven"):
        assert text in shown
    assert browser.value("document.querySelectorAll('.sheet img').length") == 10
    marked = browser.value("[...document.querySelectorAll('.annotation-text')].map((t) => t.textContent)")
    assert "resumed" in marked
    assert [text for text in marked if text.startswith("RES001")]
