"""What a training step of trainscope costs beside the same step written by hand, and how long the first one takes.

The loop by hand is that of diffusers' examples: cached latents and embeddings from a DataLoader, noise from the global
generator, AdamW, clipping, a schedule. The two take turns, a block of steps each, in one process, so that a busy
machine slows both alike. trainscope records its steps, groups and losses (always complete); its probes are off.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers.optimization import get_scheduler
from models import save_model
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from trainscope.proof.runs import RunSpec
from trainscope.runlog.rundir import create_run
from trainscope.runlog.writer import RunWriter
from trainscope.trainer.ahead import Ahead
from trainscope.trainer.batch import load_batch
from trainscope.trainer.build import build_session
from trainscope.trainer.loop import optimizer_step
from trainscope.trainer.models.load import load_components
from trainscope.trainer.models.lora import add_lora
from trainscope.trainer.models.quiet import quiet_libraries
from trainscope.trainer.recorder import Recorder
from trainscope.trainer.session import Session

ROUNDS, SECONDS, BLOCK = 15, 15.0, 6
"""Blocks of steps that each side has at least, and how long the two go on taking turns."""
LEARNING_RATE = 1e-4
SHAPES = Path(__file__).parents[1] / "examples" / "shapes"


@dataclass
class Trainscope:
    """`trainscope run`'s own step, with the probes off."""

    session: Session
    folder: Path
    seconds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        run = create_run(self.folder, "bench")
        self.recorder = Recorder(self.session, RunWriter(run))
        self.recorder.start()
        size = self.session.config.train.batch_size
        self.batches = Ahead(self.session, self.session.data.micro_batches(size, seed=self.session.seed))

    def step(self) -> None:
        optimizer_step(self.session, [next(self.batches)], self.batches.take, self.recorder, ())


@dataclass
class ByHand:
    """The same work in a loop as one writes it."""

    session: Session
    """Only its cached data are used, and a model of its own is trained."""
    lora: bool
    seconds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        session = self.session
        components = load_components(session.config.model.base, base_dir=session.resolved.base_dir)
        self.unet, self.noise_scheduler = components.unet, components.noise_scheduler
        self.unet.train()
        if self.lora:
            add_lora(self.unet, rank=session.config.lora.rank, alpha=session.config.lora.alpha)
        else:
            self.unet.requires_grad_(True)
        self.params = [param for param in self.unet.parameters() if param.requires_grad]
        self.optimizer = torch.optim.AdamW(self.params, lr=LEARNING_RATE, foreach=True)
        self.schedule = get_scheduler("constant", self.optimizer)
        batches = [load_batch(session, [sample], position=0) for sample in session.data.train]
        cached = TensorDataset(
            torch.cat([batch.latents for batch in batches]), torch.cat([batch.text for batch in batches])
        )
        size = session.config.train.batch_size
        self.loader = DataLoader(cached, batch_size=size, shuffle=True, drop_last=True)
        self.batches = self._forever()

    def _forever(self) -> Iterator[list[Tensor]]:
        while True:
            yield from self.loader

    def step(self) -> None:
        latents, text = next(self.batches)
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, 1000, (len(latents),))
        noisy = self.noise_scheduler.add_noise(latents, noise, timesteps)
        prediction = self.unet(noisy, timesteps, text, return_dict=False)[0]
        loss = torch.nn.functional.mse_loss(prediction.float(), noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.params, 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        loss.item()  # it is printed


def timed(step: Callable[[], None]) -> float:
    started = time.perf_counter()
    for _ in range(BLOCK):
        step()
    return (time.perf_counter() - started) / BLOCK


def measure(changes: dict[str, Any], folder: Path) -> tuple[list[float], list[float]]:
    """Seconds a step, one value a block, of trainscope and of the loop by hand; the first blocks warm up."""
    spec = RunSpec({"train.steps": 10_000, "optimizer.lr": LEARNING_RATE, "probes.tables": [], **changes})
    sides = (
        Trainscope(build_session(spec.resolved()), folder),
        ByHand(build_session(spec.resolved()), lora=changes["train.method"] == "lora"),
    )
    begun = time.perf_counter()
    while len(sides[1].seconds) < ROUNDS + 2 or time.perf_counter() - begun < SECONDS:
        for side in sides:
            side.seconds.append(timed(side.step))
    return sides[0].seconds[2:], sides[1].seconds[2:]


FIRST = {
    "trainscope": """
from trainscope.proof.runs import RunSpec
from trainscope.trainer.callbacks import Callback
from trainscope.trainer.train import train
import sys, time
class First(Callback):
    def after_step(self, session):
        print(time.time() - float(sys.argv[1])); sys.stdout.flush()
from pathlib import Path
train(RunSpec({"train.steps": 1, "eval.every_steps": 0, "sample.every_steps": 0}).resolved(), out=Path(sys.argv[2]),
      callbacks=[First()])
""",
    "by hand": """
import sys, time
import numpy, torch
from pathlib import Path
from PIL import Image
from diffusers import StableDiffusionPipeline
from trainscope.trainer.models.tiny import tiny_folder
pipe = StableDiffusionPipeline.from_pretrained(tiny_folder("sd15"), safety_checker=None)
unet = pipe.unet.train()
optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-4)
images, captions = [], []
for path in sorted(Path(sys.argv[3]).glob("*.png")):
    pixels = numpy.asarray(Image.open(path).convert("RGB").resize((64, 64)), dtype=numpy.float32)
    images.append(torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1)
    captions.append(path.with_suffix(".txt").read_text())
with torch.no_grad():
    latents = pipe.vae.encode(torch.stack(images)).latent_dist.mean * pipe.vae.config.scaling_factor
    ids = pipe.tokenizer(captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    text = pipe.text_encoder(ids)[0]
noise = torch.randn(4, *latents.shape[1:])
steps = torch.randint(0, 1000, (4,))
noisy = pipe.scheduler.add_noise(latents[:4], noise, steps)
loss = torch.nn.functional.mse_loss(unet(noisy, steps, text[:4], return_dict=False)[0], noise)
loss.backward()
torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
optimizer.step()
loss.item()
print(time.time() - float(sys.argv[1]))
""",
}


def first_step(name: str, folder: Path) -> float:
    """Seconds from the start of a process to the end of its first step."""
    program = [sys.executable, "-c", FIRST[name], str(time.time()), str(folder), str(SHAPES)]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[0])


def main() -> None:
    torch.set_num_threads(1)
    print(f"{'':34}{'trainscope':>12}{'by hand':>10}{'ratio':>8}   spread of the ratio")
    with tempfile.TemporaryDirectory() as folder, quiet_libraries():
        models = {"tiny UNet": "tiny:sd15", "4 M UNet": str(save_model("4 M", Path(folder) / "model"))}
        for model, base in models.items():
            for method in ("lora", "finetune"):
                for batch in (1, 4):
                    changes = {"model.base": base, "train.method": method, "train.batch_size": batch}
                    ours, theirs = measure(changes, Path(folder) / "runs")
                    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
                    low, _, high = statistics.quantiles(ratios, n=4)
                    times = [f"{statistics.median(seconds) * 1e3:9.2f} ms" for seconds in (ours, theirs)]
                    work = f"{model}, {method}, batch {batch}"
                    print(f"{work:34}{''.join(times)}{statistics.median(ratios):8.3f}   {low:.3f} – {high:.3f}")
        turns = [{name: first_step(name, Path(folder) / f"first-{n}-{name}") for name in FIRST} for n in range(3)]
        for name in FIRST:
            print(f"first step, {name}: {statistics.median(turn[name] for turn in turns):.1f} s after the start")
        print(f"ratio {statistics.median(turn['trainscope'] / turn['by hand'] for turn in turns):.2f}")


if __name__ == "__main__":
    main()
