"""ema.device = "cpu": where the model is on the CPU too, everything is bit for bit what it is without."""

from __future__ import annotations

from pathlib import Path

from tests.integration.resuming import LORA, Trained, resolved, trained
from trainscope.runlog.reader import read_run
from trainscope.trainer.ema import HostAverage

AVERAGED = {
    **LORA, "train.steps": 4, "ema.enabled": True, "eval.every_steps": 2, "sample.every_steps": 4,
    "checkpoint.every_steps": 2,
}  # fmt: skip


def rows(done: Trained, table: str, *columns: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = read_run(done.run).datasets[table].to_table(columns=list(columns)).to_pylist()
    return found


def test_it_averages_the_same(few: Path, tmp_path: Path) -> None:
    beside = trained(resolved(few, AVERAGED), tmp_path / "model")
    host = trained(resolved(few, AVERAGED, {"ema.device": "cpu"}), tmp_path / "cpu")
    assert not isinstance(beside.session.ema, HostAverage)
    assert isinstance(host.session.ema, HostAverage)
    assert host.bits() == beside.bits()
    for table, columns in (
        ("ema", ("step", "param", "lag_norm", "delivered", "distance_from_start")),
        ("evals", ("step", "weights", "loss")),
        ("samples", ("step", "weights", "digest")),
    ):
        assert rows(host, table, *columns)
        assert rows(host, table, *columns) == rows(beside, table, *columns)


def test_a_resume_goes_on_with_it(few: Path, tmp_path: Path) -> None:
    config = resolved(few, AVERAGED, {"ema.device": "cpu"})
    whole = trained(config, tmp_path / "whole")
    trained(config, tmp_path / "parts", stop_at=2)
    assert trained(config, None, resume=str(tmp_path / "parts")).bits() == whole.bits()
