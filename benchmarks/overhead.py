"""What the probes cost: the same training with them off, at every step, and at the cadence that `auto` finds.

The three take turns, a block of steps each, in one process, so that a busy machine slows all of them alike. Prints the
median step time of each and the ratio to the one without.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from trainscope.proof.runs import RunSpec
from trainscope.runlog.rundir import create_run
from trainscope.runlog.writer import RunWriter
from trainscope.trainer.build import build_session
from trainscope.trainer.loop import optimizer_step
from trainscope.trainer.models.quiet import quiet_libraries
from trainscope.trainer.recorder import Recorder

VARIANTS = {"off": {"probes.tables": []}, "every step": {"probes.every": 1}, "auto": {"probes.every": "auto"}}
WORK = {
    "full fine-tune, batch 4": {"optimizer.lr": 1e-4},
    "full fine-tune, batch 16": {"optimizer.lr": 1e-4, "train.batch_size": 16},
    "LoRA, batch 4": {"optimizer.lr": 1e-4, "train.method": "lora"},
    "Prodigy and EMA, batch 4": {"optimizer.type": "prodigy", "ema.enabled": True},
}
ROUNDS, BLOCK = 12, 10


@dataclass
class Training:
    """One variant under way, its steps timed block by block."""

    changes: dict[str, object]
    folder: Path

    def __post_init__(self) -> None:
        spec = RunSpec({"train.steps": 10_000, **self.changes})
        self.session = build_session(spec.resolved())
        run = create_run(self.folder, "bench")
        self.recorder = Recorder(self.session, RunWriter(run))
        self.recorder.start()
        size = self.session.config.train.batch_size
        self.batches = self.session.data.micro_batches(size, seed=self.session.seed)
        self.seconds: list[float] = []

    def block(self) -> None:
        started = time.perf_counter()
        for _ in range(BLOCK):
            optimizer_step(self.session, [next(self.batches)], self.recorder, ())
        self.seconds.append((time.perf_counter() - started) / BLOCK)


def measure(changes: dict[str, object], folder: Path) -> dict[str, list[float]]:
    """Seconds a step of each variant, one value a block; the first blocks warm up and are dropped."""
    trainings = {name: Training({**changes, **variant}, folder) for name, variant in VARIANTS.items()}
    for _ in range(ROUNDS + 2):
        for training in trainings.values():
            training.block()
    return {name: training.seconds[2:] for name, training in trainings.items()}


def main() -> None:
    torch.set_num_threads(1)
    print(f"{'':26}{'probes':12}{'ms a step':>10}{'ratio':>8}   spread of the ratio")
    with tempfile.TemporaryDirectory() as folder, quiet_libraries():
        for work, changes in WORK.items():
            seconds = measure(dict(changes), Path(folder))
            for name, values in seconds.items():
                ratios = [value / off for value, off in zip(values, seconds["off"], strict=True)]
                low, _, high = statistics.quantiles(ratios, n=4)
                middle = statistics.median(values) * 1000
                print(f"{work:26}{name:12}{middle:10.2f}{statistics.median(ratios):8.3f}   {low:.3f} – {high:.3f}")


if __name__ == "__main__":
    main()
