"""What looking costs: the same training without probes, with trainscope's, and with what people use instead.

The sides take turns, a block of steps each, in one process, so that a busy machine slows all of them alike:

- none: trainscope's loop, `probes.tables = []`;
- every step: trainscope's probes at each step; the log says afterwards whether every tensor was seen at every step;
- auto: at the cadence that keeps to the budget;
- wandb: `wandb.watch(log="all", log_freq=1)`, offline: a histogram of every gradient and every weight;
- item(): norms of every gradient and weight, one number at a time, as it is often written.

Prints the step time of each, its ratio to none with the spread of that, nanoseconds for each trained element and step,
bytes in the log for each row of `tensors`, and how much more memory steps took at their peak.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from models import WIDTHS, save_model

from trainscope.proof.runs import RunSpec
from trainscope.runlog.reader import read_run
from trainscope.runlog.rundir import create_run
from trainscope.runlog.writer import RunWriter
from trainscope.trainer.ahead import Ahead
from trainscope.trainer.build import build_session
from trainscope.trainer.callbacks import Callback
from trainscope.trainer.loop import optimizer_step
from trainscope.trainer.models.quiet import quiet_libraries
from trainscope.trainer.recorder import Recorder
from trainscope.trainer.session import Session

ROUNDS, BLOCK_SECONDS = 9, 0.6
FIXED: dict[str, Any] = {"train.steps": 100_000, "optimizer.lr": 1e-4, "data.resolution": 256, "run.seed": 1}
"""256 pixels are latents of 32²."""
PROBES: dict[str, dict[str, Any]] = {"every step": {"probes.every": 1}, "auto": {"probes.every": "auto"}}
SIDES = ("none", *PROBES, "wandb", "item()")
MEMORY_STEPS = 6


class Items(Callback):
    """Four numbers of every tensor, each brought over by itself."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def before_optimizer(self, session: Session) -> None:
        row: dict[str, float] = {}
        for name, param in session.params.items():
            if param.grad is not None:
                row[f"{name}/grad_norm"] = param.grad.norm().item()
                row[f"{name}/grad_max"] = param.grad.abs().max().item()
            row[f"{name}/weight_norm"] = param.detach().norm().item()
            row[f"{name}/finite"] = param.detach().isfinite().all().item()
        self.seen = [row]


class Wandb(Callback):
    def __init__(self, folder: Path) -> None:
        import wandb

        settings = wandb.Settings(console="off", x_disable_stats=True, silent=True)
        self._run = wandb.init(mode="offline", dir=folder, settings=settings)
        self._watches = False

    def before_backward(self, session: Session) -> None:
        if not self._watches:
            self._run.watch(session.unet, log="all", log_freq=1)
            self._watches = True

    def after_step(self, session: Session) -> None:
        self._run.log({"step": session.step})


@dataclass
class Side:
    """One way of looking, its training under way."""

    name: str
    changes: dict[str, Any]
    folder: Path
    seconds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        spec = RunSpec({**FIXED, **self.changes, **PROBES.get(self.name, {"probes.tables": []})})
        self.session = build_session(spec.resolved())
        self.run = create_run(self.folder, "bench")
        self.recorder = Recorder(self.session, RunWriter(self.run))
        self.recorder.start()
        size = self.session.config.train.batch_size
        self.batches = Ahead(self.session, self.session.data.micro_batches(size, seed=self.session.seed))

    @cached_property
    def callbacks(self) -> list[Callback]:
        return {"item()": lambda: [Items()], "wandb": lambda: [Wandb(self.folder)]}.get(self.name, list)()

    def steps(self, count: int) -> float:
        """Seconds a step."""
        started = time.perf_counter()
        for _ in range(count):
            optimizer_step(self.session, [next(self.batches)], self.batches.take, self.recorder, self.callbacks)
        return (time.perf_counter() - started) / count

    @property
    def elements(self) -> int:
        return sum(param.numel() for param in self.session.tensors)


def measured(changes: dict[str, Any], folder: Path) -> list[Side]:
    sides = [Side(name, changes, folder / name) for name in SIDES]
    block = max(1, round(BLOCK_SECONDS / max(side.steps(6) for side in sides)))
    for _ in range(ROUNDS):
        for side in sides:
            side.seconds.append(side.steps(block))
    return sides


def log_of(side: Side) -> str:
    """Bytes of a row, and how many of the tensors were seen how often."""
    side.recorder.log.flush()
    size = sum(file.stat().st_size for file in (side.run.log / "tensors").glob("*.parquet"))
    rows = read_run(side.run.path).datasets["tensors"].to_table(columns=["step", "param"]).to_pandas()
    steps = np.unique(rows["step"])
    share = rows.groupby("step")["param"].nunique().min() / len(side.session.params)
    return f"{size / len(rows):.0f} bytes a row, {share:.0%} of the tensors every {np.median(np.diff(steps)):g} steps"


def peak(name: str, changes: dict[str, Any]) -> int:
    """Bytes that a process takes at the peak of its steps, which does nothing else."""
    program = [sys.executable, __file__, "--peak", name, json.dumps(changes)]
    done = subprocess.run(program, capture_output=True, text=True, check=True, env={**os.environ, "WANDB_SILENT": "1"})
    return int(done.stdout.splitlines()[-1])


def steps_peak(side: Side) -> int:
    """Bytes that lie in memory at the most while it takes steps: loading a model takes more than they do."""
    side.steps(2)
    Path("/proc/self/clear_refs").write_text("5")  # Linux then counts the peak anew
    side.steps(MEMORY_STEPS)
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024


def show(work: str, sides: list[Side]) -> None:
    none = sides[0]
    print(f"\n{work}: {none.elements:,} trained elements in {len(none.session.params)} tensors")
    for side in sides:
        ratios = [mine / plain for mine, plain in zip(side.seconds, none.seconds, strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4)
        more = statistics.median(mine - plain for mine, plain in zip(side.seconds, none.seconds, strict=True))
        line = f"  {side.name:12}{statistics.median(side.seconds) * 1e3:9.1f} ms{statistics.median(ratios):8.3f}"
        line += f"   {low:.3f} – {high:.3f}{more / side.elements * 1e9:9.2f} ns/element"
        print(line + (f"   {log_of(side)}" if side.name in PROBES else ""), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 4, 16])
    parser.add_argument("--size", nargs="*", default=list(WIDTHS), choices=list(WIDTHS))
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as folder, quiet_libraries():
        if options.peak:
            print(steps_peak(Side(options.peak[0], json.loads(options.peak[1]), Path(folder))))
            return
        for size in options.size:
            base = save_model(size, Path(folder) / "models" / size)
            for method in ("finetune", "lora"):
                for batch in options.batch:
                    changes = {"model.base": str(base), "train.method": method, "train.batch_size": batch}
                    work = f"{size} UNet, {method}, batch {batch}"
                    show(work, measured(changes, Path(folder) / work))
                least = peak("none", changes)
                more = {name: (peak(name, changes) - least) / 2**20 for name in SIDES[1:]}
                print("  more memory at the peak: " + ", ".join(f"{name} {mib:.0f} MiB" for name, mib in more.items()))


if __name__ == "__main__":
    main()
