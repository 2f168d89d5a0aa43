"""Trainings with nothing wrong in them: every optimizer at a rate that suits it, with adapters and without.

Rules are proven by runs that look guilty; here they are asked about runs that nobody chose for them.
"""

from __future__ import annotations

import pytest

from trainscope.config.optimizer import OPTIMIZERS
from trainscope.engine.audit import audit
from trainscope.engine.loader import load_rules
from trainscope.engine.runs import source_of
from trainscope.proof.runs import RunSpec, make_run
from trainscope.runlog.reader import read_run

RATES = {
    "adamw": 1e-3,
    "adamw8bit": 1e-3,
    "paged-adamw8bit": 1e-3,
    "lion": 1e-4,
    "lion8bit": 1e-4,
    "paged-lion8bit": 1e-4,
    "sgd-nesterov": 0.1,
    "sgd-nesterov8bit": 0.03,
    "adafactor": 1e-3,
    "adamw-schedulefree": 2e-3,
    "radam-schedulefree": 2e-3,
    "sgd-schedulefree": 1.0,
}
"""For all weights of the tiny models; 1 for the optimizers that estimate their own."""
LORA = 10
"""By how much SGD's steps may be larger with adapters, whose gradient is smaller."""

STEPS = {"dadapt-adagrad": 400}
"""Where 80 are too few: its d grows tenfold in fifty steps, from 1e-6."""
QUICK = (("adamw", "lora"), ("prodigy", "finetune"), ("adamw-schedulefree", "lora"))


@pytest.mark.parametrize(
    ("optimizer", "method"),
    [
        pytest.param(optimizer, method, marks=[] if (optimizer, method) in QUICK else pytest.mark.slow)
        for optimizer in OPTIMIZERS
        for method in ("lora", "finetune")
    ],
)
def test_no_rule_fires(optimizer: str, method: str) -> None:
    rate = RATES.get(optimizer, 1.0) * (LORA if optimizer.startswith("sgd") and method == "lora" else 1)
    run = make_run(
        RunSpec(
            {
                "optimizer.type": optimizer,
                "optimizer.lr": rate,
                "train.method": method,
                "train.steps": 80,
            }
        )
    )
    report = audit(source_of(read_run(run)), {}, rules=load_rules()[0])
    assert [finding.message for finding in report.findings] == []
