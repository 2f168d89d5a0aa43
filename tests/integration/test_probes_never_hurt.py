"""A probe that fails costs its table and nothing else."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.integration.commands import trainscope
from tests.integration.test_bit_identity import METHODS, STEPS, Capture, assert_same, everything, finished
from trainscope.errors import TrainingError
from trainscope.probes.adapters import AdaptersProbe
from trainscope.probes.ema import EmaProbe
from trainscope.probes.groups import GroupsProbe
from trainscope.probes.params import ParamsProbe
from trainscope.probes.pending import Pending
from trainscope.probes.tensors import TensorsProbe
from trainscope.proof.runs import RunSpec
from trainscope.runlog.reader import Run, read_run
from trainscope.trainer.callbacks import Callback
from trainscope.trainer.session import Session
from trainscope.trainer.train import train

CHANGES: dict[str, Any] = {**METHODS["lora"], "ema.enabled": True, "optimizer.lr": 1e-3}
"""A run with every probe."""


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What the same training leaves with all probes in order."""
    return everything(finished(tmp_path_factory.mktemp("untouched") / "run", **CHANGES))


def failing(calls: int, real: Callable[..., Any]) -> Callable[..., Any]:
    """`real` with a bug that shows at a call."""
    done = 0

    def broken(*args: Any, **kwargs: Any) -> Any:
        nonlocal done
        done += 1
        if done >= calls:
            raise RuntimeError("a bug in the probe")
        return real(*args, **kwargs)

    return broken


def check_given_up(run: Run, table: str, says: str) -> None:
    """Reported once in the events, with a reason for every column, and the training went on to its end."""
    assert (run.status, run.last_step()) == ("completed", STEPS)
    events = run.datasets["events"].to_table().to_pylist()
    (failure,) = [json.loads(event["detail"]) for event in events if event["kind"] == "probe_failed"]
    assert failure["table"] == table
    assert says in failure["reason"]
    rows = run.datasets["coverage"].to_table().to_pylist()
    reasons = {row["column"]: row["reason"] for row in rows if row["table"] == table and says in row["reason"]}
    assert {"step", "weight_norm", "lag_norm", "delta_norm", "lr", "param", "loss"} & reasons.keys()
    steps = run.datasets["steps"].to_table().to_pylist()
    assert [row["step"] for row in steps] == list(range(1, STEPS + 1))


@pytest.mark.parametrize(
    ("place", "method", "table", "kept"),
    [
        (TensorsProbe, "__init__", "tensors", []),
        (TensorsProbe, "before_step", "tensors", [1, 2]),
        (TensorsProbe, "after_step", "tensors", [1, 2]),
        (EmaProbe, "__init__", "ema", []),
        (EmaProbe, "before_update", "ema", [1, 2]),
        (EmaProbe, "after_update", "ema", [1, 2]),
        (AdaptersProbe, "__init__", "adapters", []),
        (AdaptersProbe, "measure", "adapters", [1, 2]),
        (GroupsProbe, "__init__", "groups", []),
        (GroupsProbe, "before_step", "groups", [1, 2]),
        (GroupsProbe, "after_step", "groups", [1, 2]),
        (ParamsProbe, "__init__", "params", None),
        (ParamsProbe, "measure", "params", None),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_probe_that_raises(
    place: object,
    method: str,
    table: str,
    kept: list[int] | None,
    tmp_path: Path,
    untouched: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    at = 3 if kept else 1
    monkeypatch.setattr(place, method, failing(at, getattr(place, method)))
    session = finished(tmp_path / "run", **CHANGES)
    assert_same(everything(session), untouched)
    run = read_run(tmp_path / "run")
    check_given_up(run, table, "a bug in the probe")
    if kept is not None:
        # What was measured before it failed is kept.
        found = run.datasets[table].to_table(columns=["step"])["step"].to_pylist()
        assert sorted(set(found)) == kept
    for other in {"tensors", "ema", "adapters", "groups"} - {table}:
        assert len(set(run.datasets[other].to_table()["step"].to_pylist())) == STEPS


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"columns": ("nonsense",) * 4}, "nonsense"),
        ({"integers": frozenset({"a_norm"}), "values": torch.full((4, 1), torch.nan, dtype=torch.float64)}, "NaN"),
        ({"keys": {"module": ["a", "b"]}, "values": torch.zeros(4, 1, dtype=torch.float64)}, "different lengths"),
        ({"keys": {"module": [{"not": "text"}]}, "values": torch.zeros(4, 1, dtype=torch.float64)}, "'dict'"),
    ],
    ids=["a column that is not there", "no integer", "rows that do not match", "another type"],
)
def test_a_probe_that_measures_nonsense(
    change: dict[str, Any],
    says: str,
    tmp_path: Path,
    untouched: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What only shows when the values reach the host, or the disk."""
    real = AdaptersProbe.measure

    def measure(self: AdaptersProbe, step: int) -> Pending:
        return dataclasses.replace(real(self, step), **change)

    monkeypatch.setattr(AdaptersProbe, "measure", measure)
    session = finished(tmp_path / "run", **CHANGES)
    assert_same(everything(session), untouched)
    run = read_run(tmp_path / "run")
    check_given_up(run, "adapters", says)
    for other in ("tensors", "ema", "groups", "order"):
        assert len(set(run.datasets[other].to_table()["step"].to_pylist())) == STEPS


def test_an_audit_says_why_a_table_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TensorsProbe, "after_step", failing(1, TensorsProbe.after_step))
    finished(tmp_path / "run", **METHODS["finetune"], **{"precision.weights": "bf16"})
    result = trainscope("audit", tmp_path / "run", "--format", "json", "--output", "-", "--fail-on", "never")
    rules = {rule["code"]: rule for rule in json.loads(result.out)["rules"]}
    assert rules["PREC001"]["outcome"] == "not_observable"
    assert "a bug in the probe" in rules["PREC001"]["reason"]


# ---- memory


def test_no_memory(tmp_path: Path) -> None:
    class Greedy(Callback):
        def before_optimizer(self, session: Session) -> None:
            if session.step == 2:
                torch.empty(2**60, dtype=torch.uint8)

    spec = RunSpec({**METHODS["lora"], "train.steps": STEPS, "eval.every_steps": 0})
    with pytest.raises(TrainingError, match="out of memory at step 3") as caught:
        train(spec.resolved(), out=tmp_path / "run", callbacks=[Greedy()])
    assert "train.batch_size" in (caught.value.hint or "")
    run = read_run(tmp_path / "run")
    assert (run.info["status"], run.last_step()) == ("crashed", 2)


def test_a_bug_in_the_training_is_not_explained_away(tmp_path: Path) -> None:
    class Buggy(Capture):
        def before_backward(self, session: Session) -> None:
            raise RuntimeError("a bug")

    spec = RunSpec({**METHODS["lora"], "train.steps": STEPS, "eval.every_steps": 0})
    with pytest.raises(RuntimeError, match="a bug"):
        train(spec.resolved(), out=tmp_path / "run", callbacks=[Buggy()])
    run = read_run(tmp_path / "run")
    (crash,) = [e for e in run.datasets["events"].to_table().to_pylist() if e["kind"] == "crash"]
    assert json.loads(crash["detail"]) == {"error": "RuntimeError", "message": "a bug"}
