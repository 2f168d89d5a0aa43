"""A small training and everything that it did: what its steps were given, what they left, on disk and in memory."""

from __future__ import annotations

import copy
import functools
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors import safe_open
from torch import Tensor
from transformers import CLIPTextModel

from tests.integration.every_key.pictures import SIDE, write_masks, write_pictures
from trainscope.config.load import parse_config
from trainscope.proof.runs import config_text
from trainscope.runlog.reader import read_run
from trainscope.trainer import build, loop
from trainscope.trainer.batch import Batch
from trainscope.trainer.callbacks import Callback
from trainscope.trainer.data.order import sample_of
from trainscope.trainer.diffusion import Denoised
from trainscope.trainer.models.load import Components
from trainscope.trainer.noise import Draw
from trainscope.trainer.session import Session
from trainscope.trainer.train import train
from trainscope.trainer.training import Finished

Values = Mapping[str, Any]
BASE: Values = {
    "model.base": "tiny:sd15",
    "train.steps": 2,
    "train.batch_size": 2,
    "lora.rank": 4,
    "lora.alpha": 4.0,
    "data.resolution": SIDE,
    "data.validation_split": 0.0,
    "optimizer.lr": 1e-3,
    "run.seed": 1,
    "run.device": "cpu",
    "sample.every_steps": 0,
    "eval.every_steps": 0,
    "probes.every": 1,
    "checkpoint.save_state": False,
}


@dataclass(frozen=True)
class Pass:
    """A forward pass of training: what the UNet was given, and what came of it."""

    batch: Batch
    draw: Draw
    noisy: Tensor
    text: Tensor
    target: Tensor
    losses: Tensor
    weighted: Tensor

    @property
    def pictures(self) -> list[int]:
        return [sample_of(visit) for visit in self.batch.samples]


@dataclass
class Seen(Callback):
    """Watches a training.

    `blocks` counts the calls of a block of the UNet, `formats` are those that it computed in, `encoded` counts the
    calls of the encoders: latents, text.
    """

    started: dict[str, Tensor] = field(default_factory=dict)
    passes: list[Pass] = field(default_factory=list)
    blocks: int = 0
    formats: set[torch.dtype] = field(default_factory=set)
    encoded: Counter[str] = field(default_factory=Counter)
    session: Session = field(init=False)
    finished: Finished = field(init=False)

    def on_start(self, session: Session) -> None:
        self.session = session
        self.started = {name: tensor.detach().clone() for name, tensor in session.params.items()}
        session.unet.down_blocks[0].resnets[0].register_forward_pre_hook(self._saw_block)
        session.unet.conv_in.register_forward_hook(lambda module, args, output: self.formats.add(output.dtype))

    def _saw_block(self, module: torch.nn.Module, args: Any) -> None:
        self.blocks += 1

    def denoise(self, session: Session, batch: Batch, draw: Draw, *more: Any) -> Denoised:
        """Takes the place of the loop's forward pass, looks on and lets it be."""
        given: list[Tensor] = []

        def look(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given.extend([args[0].detach().clone(), args[2].detach().clone()])

        handle = session.unet.register_forward_pre_hook(look, with_kwargs=True)
        try:
            outcome = _denoise(session, batch, draw, *more)
        finally:
            handle.remove()
        noisy, text = given
        losses, weighted = outcome.losses.detach(), outcome.weighted.detach()
        self.passes.append(Pass(batch, draw, noisy, text, outcome.target, losses, weighted))
        return outcome

    # ---- what is looked at

    @property
    def run(self) -> Path:
        return self.finished.run.path

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self.session.params.items()}

    @property
    def moved(self) -> float:
        """‖θ − θ₀‖ over all trained tensors."""
        parts = [(self.weights[name].float() - start.float()).norm() for name, start in self.started.items()]
        return float(torch.stack(parts).norm())

    @property
    def latents(self) -> Tensor:
        """All that was trained on, in order."""
        return torch.cat([one.batch.latents for one in self.passes])

    @property
    def texts(self) -> list[tuple[int, Tensor]]:
        """Picture and text of every visit, in order."""
        return [(number, text) for one in self.passes for number, text in zip(one.pictures, one.text, strict=True)]

    @property
    def noise(self) -> Tensor:
        return torch.cat([one.draw.noise for one in self.passes])

    @property
    def timesteps(self) -> Tensor:
        return torch.cat([one.draw.timesteps for one in self.passes])

    @property
    def visited(self) -> list[int]:
        return [number for one in self.passes for number in one.pictures]

    def column(self, table: str, *names: str) -> list[Any]:
        """Rows of the run's log, in the order of their steps."""
        rows = read_run(self.run).datasets[table].to_table().to_pylist()
        rows.sort(key=lambda row: row.get("step") or 0)
        return [tuple(row[name] for name in names) if len(names) > 1 else row[names[0]] for row in rows]

    @property
    def losses(self) -> list[float]:
        return self.column("steps", "loss")

    @property
    def lrs(self) -> list[float]:
        """The UNet's learning rate at every step."""
        return [lr for name, lr in self.column("groups", "name", "lr") if name == "unet"]

    @property
    def checkpoints(self) -> list[int]:
        return sorted(int(path.name.removeprefix("step-")) for path in (self.run / "checkpoints").glob("step-*"))

    @property
    def files(self) -> list[str]:
        """What the last checkpoint holds."""
        last = self.finished.checkpoint
        return sorted(str(path.relative_to(last)) for path in last.rglob("*") if path.is_file())

    @property
    def file_formats(self) -> set[torch.dtype]:
        """The formats of the tensors that the run leaves for use."""
        found = set()
        for path in (self.finished.checkpoint / "weights").rglob("*.safetensors"):
            with safe_open(path, framework="pt") as file:
                found |= {file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118
        return found - {torch.int64}

    @property
    def images(self) -> dict[str, tuple[tuple[int, int], bytes]]:
        """Size and pixels of every sample."""
        found = {}
        for path in sorted((self.run / "samples").glob("*.png")):
            with Image.open(path) as picture:
                found[path.name] = (picture.size, picture.convert("RGB").tobytes())
        return found


_denoise = loop.denoise
_load_components = build.load_components


@dataclass(frozen=True)
class Watcher:
    """Makes trainings in a folder, with pictures beside them; those that are asked for again are made once."""

    folder: Path
    _kept: dict[str, Seen] = field(default_factory=dict)
    _loaded: dict[str, Components] = field(default_factory=dict)

    @cached_property
    def pictures(self) -> Path:
        return write_pictures(self.folder / "pictures")

    @cached_property
    def mirrored(self) -> Path:
        return write_pictures(self.folder / "mirrored", mirrored=True)

    @cached_property
    def masks(self) -> Path:
        return write_masks(self.folder / "masks")

    def text(self, values: Values) -> str:
        """A cfg.toml of `BASE` with changes; None takes a key away, and a function is given the watcher."""
        merged = {**BASE, "data.dir": str(self.pictures), "run.dir": str(self.folder / "runs"), **values}
        found = {key: value(self) if callable(value) else value for key, value in merged.items()}
        return config_text({key: value for key, value in found.items() if value is not None})

    def see(self, values: Values, **options: Any) -> Seen:
        """Train, and tell all about it."""
        seen = Seen()
        encoders = [("latents", AutoencoderKL, "encode"), ("text", CLIPTextModel, "forward")]
        with ExitStack() as stack:
            stack.enter_context(fast())
            stack.enter_context(mock.patch.object(loop, "denoise", seen.denoise))
            stack.enter_context(mock.patch.object(build, "load_components", self._load))
            for kind, owner, name in encoders:
                stack.enter_context(mock.patch.object(owner, name, _counted(getattr(owner, name), seen.encoded, kind)))
            seen.finished = train(parse_config(self.text(values)), callbacks=[seen], **options)
        return seen

    def _load(self, **asked: Any) -> Components:
        """Loading is most of the time of a small training, and the same for the same model."""
        key = repr([value for name, value in asked.items() if name != "warn"])
        if key not in self._loaded:
            self._loaded[key] = _load_components(**asked)
        return copy.deepcopy(self._loaded[key])

    def seen(self, values: Values, time: int = 1) -> Seen:
        """The same, made once for each `time`."""
        key = f"{time} {sorted(values.items(), key=lambda item: item[0])}"
        if key not in self._kept:
            self._kept[key] = self.see(values)
        return self._kept[key]


def _counted(call: Callable[..., Any], count: Counter[str], kind: str) -> Callable[..., Any]:
    @functools.wraps(call)
    def counted(*args: Any, **kwargs: Any) -> Any:
        count[kind] += 1
        return call(*args, **kwargs)

    return counted


@contextmanager
def fast() -> Iterator[None]:
    """Nothing here is meant to survive a crash, and waiting for the disk is most of a tiny run's time."""
    with mock.patch.object(os, "fsync"):
        yield


def same(one: Any, other: Any) -> bool:
    """Whether two things that were looked at are the same, tensors bit by bit."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


Look = Callable[[Seen], Any]


@dataclass(frozen=True)
class Case:
    """A key set to `value`, all else as in `BASE` and `base`: what is looked at differs then, and as `means` says."""

    value: Any
    look: Look
    means: Callable[[Any, Any], bool]
    base: Values = field(default_factory=dict)


Own = Callable[[Watcher], None]
"""A key whose effect takes more than two trainings that differ in it."""
