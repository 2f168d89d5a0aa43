"""The seed cases: each faulty configuration gets its cause, `fix` cures it, and the healthy twin is silent."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainscope.cli.auditing import audit_run
from trainscope.cli.fix import fix
from trainscope.config.load import load_config
from trainscope.engine.runs import source_of
from trainscope.proof.cases import HEALTHY_MARGIN, final_loss, last_step
from trainscope.proof.runs import run_config
from trainscope.runlog.reader import read_run
from trainscope.schema import Report

EXAMPLES = Path(__file__).parents[2] / "examples"
NO_IMAGES = ["sample.every_steps=0"]  # only to save time: samples change nothing that is audited here

FAULTS = {
    "s0-prodigy-changes-nothing": {
        "bf16-weights": "PREC001",
        "fp16-weights": "PREC002",
        "lr-too-low": "PRO002",
        "d0-too-low": "PRO003",
        "run-too-short": "SCH001",
        "ema-hides-it": "EMA003",
    },
    "s2-ema-nothing-learned": {
        "ema-in-bf16": "EMA002",
        "decay-outlives-run": "EMA003",
        "weights-in-bf16": "PREC001",
    },
}
ONE_BY_ONE = [(folder, name, code) for folder, faults in FAULTS.items() for name, code in faults.items()]


def run(path: Path) -> Path:
    return run_config(load_config(path, NO_IMAGES))


def first_cause(report: Report) -> str:
    codes = {finding.fingerprint: finding.code for finding in report.findings}
    return codes[report.diagnoses[0].causes[0].finding]


def loss(run_dir: Path) -> float:
    measured = final_loss(source_of(read_run(run_dir)))
    assert measured is not None
    return measured


@pytest.mark.parametrize(("folder", "name", "code"), ONE_BY_ONE, ids=[f"{f[:2]}-{n}" for f, n, _ in ONE_BY_ONE])
def test_a_fault_is_named_and_cured(folder: str, name: str, code: str, tmp_path: Path) -> None:
    faulty = run(EXAMPLES / folder / f"{name}.toml")
    report = audit_run(faulty)
    assert first_cause(report) == code
    assert report.diagnoses[0].severity == "error"

    fixed_config = tmp_path / "cfg.fixed.toml"
    fix(faulty, fixed_config)
    fixed = run(fixed_config)
    after = {outcome.code: outcome.outcome for outcome in audit_run(fixed).rules}
    assert after[code] == "clear"
    assert last_step(source_of(read_run(fixed))) >= last_step(source_of(read_run(faulty)))

    healthy = run(EXAMPLES / folder / "healthy.toml")
    assert loss(fixed) <= HEALTHY_MARGIN * loss(healthy)
    assert not loss(faulty) <= HEALTHY_MARGIN * loss(healthy), "the fault does no harm"


@pytest.mark.parametrize("folder", FAULTS)
def test_the_healthy_twin_is_silent_because_the_rules_looked(folder: str) -> None:
    report = audit_run(run(EXAMPLES / folder / "healthy.toml"))
    assert [finding.code for finding in report.findings if finding.severity != "info"] == []
    outcomes = {outcome.code: outcome.outcome for outcome in report.rules}
    for name in FAULTS[folder]:
        for fired in audit_run(run(EXAMPLES / folder / f"{name}.toml")).findings:
            assert outcomes[fired.code] == "clear", f"{fired.code} fired in {name}"


def test_s0_lowering_the_lr_is_refuted() -> None:
    report = audit_run(run(EXAMPLES / "s0-prodigy-changes-nothing" / "bf16-weights.toml"))
    refuted = [refuted for finding in report.findings for refuted in finding.refuted]
    assert {patch for advice in refuted for patch in advice.config_patch.items()} >= {
        ("optimizer.lr", 0.1),
        ("optimizer.lr", 0.01),
    }
    assert all(advice.proof is not None and advice.proof.rule == "fired" for advice in refuted)


@pytest.mark.parametrize(("folder", "name"), [(folder, name) for folder, name, _ in ONE_BY_ONE])
def test_a_twin_differs_by_little(folder: str, name: str) -> None:
    """The configurations differ in the fault, and in nothing else."""
    faulty = {key: value for key, value, _ in load_config(EXAMPLES / folder / f"{name}.toml").rows()}
    healthy = {key: value for key, value, _ in load_config(EXAMPLES / folder / "healthy.toml").rows()}
    different = {key for key in faulty if faulty[key] != healthy[key]} - {"run.name"}
    assert len(different) == 1
