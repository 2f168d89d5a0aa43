"""Several processes train as one does: two gloo processes on the CPU beside one with the doubled batch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.integration.commands import ENVIRONMENT, ROOT, SHAPES
from trainscope.proof.runs import config_text
from trainscope.runlog.reader import read_run

STEPS = 6
VALUES: dict[str, Any] = {
    "run.seed": 3,
    "model.base": "tiny:sd15",
    "train.method": "finetune",
    "train.steps": STEPS,
    "train.batch_size": 2,
    "train.gradient_accumulation": 2,
    "data.dir": str(SHAPES),
    "data.resolution": 32,
    "optimizer.lr": 1e-4,
    "scheduler.type": "cosine",
    "scheduler.warmup": 2,
    "ema.enabled": True,
    "eval.every_steps": 3,
    "eval.samples": 4,
    "sample.every_steps": 0,
    "probes.every": 1,
}
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
ACCELERATE = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0")
"""On the CPU too: with --cpu it starts one process, whatever --num_processes says, unless MPI starts the others."""
TOLERANCE = 1e-3
"""Of the distance that the weights moved: the sums are the same but for their order, and Adam divides small ones."""


@dataclass(frozen=True)
class Launched:
    code: int
    out: str
    err: str
    run: Path

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        (checkpoint,) = [path for path in (self.run / "checkpoints").iterdir() if path.name.endswith(f"{STEPS:08d}")]
        return load_file(checkpoint / "state" / "trained.safetensors")

    def rows(self, table: str, *columns: str) -> list[tuple[Any, ...]]:
        found = read_run(self.run).datasets[table].to_table().to_pylist()
        return sorted(tuple(row[column] for column in columns) for row in found)


def command(launcher: tuple[str, ...], config: Path, *options: object) -> list[str]:
    return [sys.executable, *launcher, "-m", "trainscope", "run", str(config), *map(str, options)]


Launch = Callable[..., Launched]


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Launch:
    def run(*options: object, launcher: tuple[str, ...] = TORCHRUN, out: Path | None = None, **values: Any) -> Launched:
        folder = tmp_path_factory.mktemp("processes")
        config = folder / "cfg.toml"
        config.write_text(config_text({**VALUES, **{key.replace("__", "."): value for key, value in values.items()}}))
        out = out or folder / "run"
        done = subprocess.run(
            command(launcher, config, "--out", out, "--no-audit", *options),
            cwd=ROOT,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=240,
        )
        return Launched(done.returncode, done.stdout, done.stderr, out)

    return run


@pytest.fixture(scope="module")
def alone(launch: Launch) -> Launched:
    return launch(launcher=(), train__batch_size=4)


@pytest.fixture(scope="module")
def together(launch: Launch) -> Launched:
    return launch()


def distance(one: Launched, other: Launched) -> float:
    """‖difference‖ over what the weights moved."""
    moved = sum(row[0] ** 2 for row in one.rows("tensors", "distance_from_start", "step") if row[1] == STEPS)
    apart = sum(float((one.weights[name] - tensor).double().square().sum()) for name, tensor in other.weights.items())
    return float((apart / moved) ** 0.5)


def test_two_processes_are_one_with_twice_the_batch(alone: Launched, together: Launched) -> None:
    assert (alone.code, together.code) == (0, 0), together.err
    assert alone.weights.keys() == together.weights.keys()
    assert distance(alone, together) < TOLERANCE
    ours, theirs = (dict(found.rows("steps", "step", "loss")) for found in (together, alone))
    assert ours == pytest.approx(theirs, rel=1e-5)
    ours, theirs = (
        {row[:2]: row[2] for row in found.rows("evals", "step", "weights", "loss")} for found in (together, alone)
    )
    assert ours == pytest.approx(theirs, rel=1e-4)


def test_each_process_sees_its_share(alone: Launched, together: Launched) -> None:
    everything = together.rows("order", "step", "position", "sample", "rank")
    by_position = [row[1] for row in everything]
    assert 1 in {by_position.count(position) for position in by_position}  # a short batch, with nothing for the second
    assert {rank for *_, rank in everything} == {0, 1}
    assert sorted(row[:3] for row in everything) == alone.rows("order", "step", "position", "sample")
    ranks = together.rows("steps", "rank", "samples")
    assert sum(samples for _, samples in ranks) == sum(row[0] for row in alone.rows("steps", "samples"))


def test_the_schedule_steps_once(alone: Launched, together: Launched) -> None:
    assert together.rows("groups", "step", "rank", "lr", "scheduler_step") == alone.rows(
        "groups", "step", "rank", "lr", "scheduler_step"
    )


def test_only_the_first_talks(together: Launched) -> None:
    assert together.out.count("completed at step") == 1
    assert together.out.rstrip().splitlines()[-1] == str(together.run)
    checkpoints = list((together.run / "checkpoints").iterdir())
    assert [path.name for path in checkpoints] == [f"step-{STEPS:08d}"]
    assert {row[0] for row in together.rows("checksums", "rank")} == {0, 1}
    by_moment = together.rows("checksums", "step", "moment", "item", "digest")
    assert len(set(by_moment)) * 2 == len([row for row in by_moment if row[1] != "saved"]) + 2 * len(
        [row for row in by_moment if row[1] == "saved"]
    )  # the weights are bit for bit the same on both


@pytest.mark.slow
def test_interrupted_and_resumed(launch: Launch, together: Launched, tmp_path: Path) -> None:
    config = tmp_path / "cfg.toml"
    config.write_text(config_text({**VALUES, "checkpoint.every_steps": 2, "checkpoint.keep": 1}))
    out = tmp_path / "run"
    process = subprocess.Popen(
        command(TORCHRUN, config, "--out", out, "--no-audit", "--set", "probes.every=1"),
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    _wait_for(lambda: any((out / "checkpoints").glob("step-0000000[24]")), process)
    process.send_signal(signal.SIGTERM)
    told, _ = process.communicate(timeout=120)
    status = json.loads((out / "run.json").read_text())["status"]
    assert status in ("interrupted", "completed"), told
    if status == "interrupted":
        resumed = launch("--resume", "latest", out=out)
        assert resumed.code == 0, resumed.err
    weights = Launched(0, "", "", out).weights
    for name, tensor in together.weights.items():
        assert torch.equal(weights[name], tensor), name


@pytest.mark.slow
def test_another_number_of_processes_is_refused(launch: Launch, together: Launched) -> None:
    refused = launch("--resume", together.run, launcher=(), out=together.run, train__steps=STEPS + 2)
    assert refused.code == 2
    assert "1 processes: were 2" in refused.err


@pytest.mark.slow
def test_accelerate_launch(launch: Launch, together: Launched) -> None:
    launched = launch(launcher=ACCELERATE)
    assert launched.code == 0, launched.err
    for name, tensor in together.weights.items():
        assert torch.equal(launched.weights[name], tensor), name


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("ACCELERATE_USE_DEEPSPEED", "true", "DeepSpeed"),
        ("ACCELERATE_MIXED_PRECISION", "bf16", "precision.compute"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "train.gradient_accumulation"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "compiled"),
    ],
)
def test_what_a_launcher_asks_for_is_done_or_refused(variable: str, value: str, says: str) -> None:
    from trainscope.errors import ConfigError
    from trainscope.trainer.processes import join

    with pytest.raises(ConfigError, match=says):
        join("auto", {variable: value})


def _wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    for _ in range(2000):
        if condition() or process.poll() is not None:
            return
        time.sleep(0.05)
    raise AssertionError("nothing happened")


SHARDED = """
import sys
from pathlib import Path
import torch
from torch.distributed.tensor import DTensor
from trainscope.config.load import load_config
from trainscope.trainer.callbacks import Callback
from trainscope.trainer.train import train

class Look(Callback):
    def on_start(self, session):
        assert all(isinstance(param, DTensor) for param in session.params.values())
        held = sum(param.to_local().numel() for param in session.params.values())
        share = held / sum(param.numel() for param in session.params.values())
        out.with_name(f"share-{session.processes.rank}").write_text(str(share))

torch.set_num_threads(1)
out, resume = Path(sys.argv[2]), sys.argv[3] or None
train(load_config(Path(sys.argv[1])), out=out, resume=resume, stop_at=int(sys.argv[4]) or None, callbacks=[Look()])
"""


@pytest.fixture
def launch_sharded(tmp_path: Path) -> Iterator[Callable[..., Launched]]:
    script, config, out = tmp_path / "sharded.py", tmp_path / "cfg.toml", tmp_path / "run"
    script.write_text(SHARDED)
    config.write_text(config_text({**VALUES, "train.parallel": "fsdp"}))

    def run(resume: str = "", stop_at: int = 0) -> Launched:
        program = [sys.executable, *TORCHRUN, str(script), str(config), str(out), resume, str(stop_at)]
        env = {**ENVIRONMENT, "PYTHONPATH": str(ROOT) + os.pathsep + os.environ.get("PYTHONPATH", "")}
        done = subprocess.run(program, cwd=ROOT, env=env, capture_output=True, text=True, timeout=240)
        return Launched(done.returncode, done.stdout, done.stderr, out)

    return run


@pytest.mark.slow
def test_fsdp_spreads_the_weights(launch_sharded: Callable[..., Launched], alone: Launched, together: Launched) -> None:
    first = launch_sharded(stop_at=3)
    assert first.code == 0, first.err
    shares = [float(file.read_text()) for file in first.run.parent.glob("share-*")]
    assert len(shares) == 2
    assert all(0.4 < share < 0.6 for share in shares)
    done = launch_sharded(resume="latest")
    assert done.code == 0, done.err
    assert distance(alone, done) < TOLERANCE
    (reason,) = {row[1] for row in done.rows("coverage", "table", "reason") if row[0] == "tensors"}
    assert reason == "the weights are spread over processes"


@pytest.mark.slow
def test_fsdp_for_one_process_is_an_error(launch: Launch) -> None:
    refused = launch(launcher=(), train__parallel="fsdp")
    assert refused.code == 2
    assert "nobody to share the weights with" in refused.err
