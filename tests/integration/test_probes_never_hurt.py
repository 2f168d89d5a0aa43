"""A probe that fails costs its table and nothing else; a disk that fails ends the training in words."""

from __future__ import annotations

import dataclasses
import errno
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.integration.commands import ENVIRONMENT, config_text, settings, trainscope
from tests.integration.test_bit_identity import METHODS, STEPS, Capture, assert_same, everything, finished
from trainscope.errors import TrainingError
from trainscope.probes.adapters import AdaptersProbe
from trainscope.probes.ema import EmaProbe
from trainscope.probes.groups import GroupsProbe
from trainscope.probes.params import ParamsProbe
from trainscope.probes.pending import Pending
from trainscope.probes.tensors import TensorsProbe
from trainscope.proof.runs import RunSpec
from trainscope.runlog import writer as writer_module
from trainscope.runlog.reader import Run, read_run
from trainscope.trainer import train as train_module
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


# ---- the disk


class _Disk:
    """A disk that is full from some write on."""

    def __init__(self, writes: int) -> None:
        self.left = writes
        self.real = writer_module.write_atomically

    def __call__(self, path: Path, data: bytes) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        self.real(path, data)


@pytest.mark.parametrize("writes", [0, 2, 12])
def test_a_log_that_cannot_be_written(writes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The training ends, says why and what to do, and what was flushed before reads."""
    monkeypatch.setattr(writer_module, "write_atomically", _Disk(writes))
    with pytest.raises(TrainingError, match="No space left on device") as caught:
        finished(tmp_path / "run", **CHANGES, **{"checkpoint.every_steps": 2})
    assert caught.value.exit_code == 2
    assert "free disk space" in (caught.value.hint or "")
    run = read_run(tmp_path / "run")
    assert run.status == "crashed"
    assert sum(data.count_rows() > 0 for data in run.datasets.values()) >= min(writes, 1)
    assert trainscope("audit", tmp_path / "run", "--fail-on", "never").code == 0


def test_a_log_that_can_be_written_again_has_lost_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that was full for a moment: the crash is recorded with all the rows that waited."""
    disk = _Disk(10**6)
    monkeypatch.setattr(writer_module, "write_atomically", disk)

    class FullAtStep4(Callback):
        def after_step(self, session: Session) -> None:
            disk.left = 0 if session.step == 4 else disk.left

        def on_event(self, kind: str, detail: dict[str, Any]) -> None:
            pass

    real_record_crash = train_module.record_crash

    def record_crash(*args: Any) -> None:
        disk.left = 10**6
        real_record_crash(*args)

    monkeypatch.setattr(train_module, "record_crash", record_crash)
    spec = RunSpec({**METHODS["lora"], "train.steps": STEPS, "eval.every_steps": 0, "checkpoint.every_steps": 4})
    with pytest.raises(TrainingError, match="at step 5"):
        train(spec.resolved(), out=tmp_path / "run", callbacks=[FullAtStep4()])
    run = read_run(tmp_path / "run")
    assert run.info["status"] == "crashed"
    assert run.datasets["steps"].to_table()["step"].to_pylist() == [1, 2, 3, 4]
    events = {event["kind"]: json.loads(event["detail"]) for event in run.datasets["events"].to_table().to_pylist()}
    assert "No space left" in events["crash"]["message"]


LIMITED = """
import resource, sys
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
from trainscope.cli import main
main()
"""


@pytest.mark.parametrize(
    ("limit", "says"), [(1_000, "error: at step 1: "), (200_000, "error: the checkpoint of step 4 cannot be written: ")]
)
def test_files_that_cannot_grow(limit: int, says: str, tmp_path: Path) -> None:
    """A real limit of the system instead of a full disk: Parquet, safetensors and torch each fail in their own way."""
    import subprocess

    (tmp_path / "cfg.toml").write_text(config_text(), encoding="utf-8")
    options = settings("train.method=finetune", "sample.every_steps=0", "eval.every_steps=0", "run.device=cpu")
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(limit), "run", "cfg.toml", "--out", "mine", *options],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(says)
    assert "too large" in done.stderr.splitlines()[0]
    assert read_run(tmp_path / "mine").status == "crashed"
    assert not list((tmp_path / "mine").rglob("*.tmp"))


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
