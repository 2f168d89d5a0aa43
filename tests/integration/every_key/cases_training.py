"""The keys of `[run]`, `[model]`, `[train]` and `[lora]`."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from tests.integration.every_key.watch import Case, Own, Seen, Values, Watcher, same
from tests.integration.published import tiny_architecture, write_tiny
from trainscope.config.load import parse_config
from trainscope.errors import ModelError, TrainingError
from trainscope.trainer.build import build_session
from trainscope.trainer.models import recognise
from trainscope.trainer.models.load import load_components
from trainscope.trainer.models.tiny import tiny_folder
from trainscope.trainer.processes import Processes

FINETUNE: Values = {"train.method": "finetune", "optimizer.lr": 1e-4}
CONV: Values = {"lora.conv_rank": 2}
BOTH: Values = {"train.parts": ["unet", "text_encoder"]}
V: Values = {"model.base": "tiny:sd2-v", "model.zero_terminal_snr": False, "noise.min_timestep": 999}


def larger(before: float, after: float) -> bool:
    return after > before


def smaller(before: float, after: float) -> bool:
    return after < before


def differ(before: Any, after: Any) -> bool:
    """Where there is no direction: the test sees by itself that something changed."""
    return True


def components(seen: Seen) -> set[str]:
    return {name.partition(".")[0] for name in seen.weights}


def shapes(seen: Seen) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in seen.weights.items()}


def adapted(seen: Seen) -> set[str]:
    """The modules that have an adapter in the file that the run leaves."""
    return {pair.module for pair in seen.session.pairs}


# ---- [run]


def run_seed_drawn(watcher: Watcher) -> None:
    """A seed is used; -1 draws another one each time, which is recorded."""
    one, other = watcher.see({"run.seed": 2}), watcher.see({"run.seed": 3})
    again = watcher.see({"run.seed": 2})
    assert torch.equal(one.noise, again.noise)
    assert not torch.equal(one.noise, other.noise)
    assert one.visited != other.visited or not torch.equal(one.timesteps, other.timesteps)
    drawn, another = watcher.see({"run.seed": -1}), watcher.see({"run.seed": -1})
    assert not torch.equal(drawn.noise, another.noise)
    rows = dict(drawn.column("config", "key", "value"))
    assert torch.equal(watcher.see({"run.seed": int(rows["run.seed"])}).noise, drawn.noise)


def run_device(watcher: Watcher) -> None:
    """Everything is on the device that is named, and one that is not there is refused."""
    seen = watcher.seen({})
    devices = {tensor.device.type for tensor in (*seen.session.params.values(), *seen.session.unet.parameters())}
    assert devices == {seen.passes[0].noisy.device.type} == {"cpu"}
    assert dict(seen.column("env", "key", "value"))["device"] == "cpu"
    with pytest.raises(TrainingError, match="cannot be used"):
        watcher.see({"run.device": "cuda:99"})
    there = "cuda" if torch.cuda.is_available() else "cpu"
    auto = watcher.see({"run.device": "auto"})
    assert {tensor.device.type for tensor in auto.session.params.values()} == {there}


# ---- [model]


def other_vae(watcher: Watcher) -> str:
    """A VAE of the same shape with other weights."""
    folder = watcher.folder / "vae"
    if not folder.exists():
        shutil.copytree(tiny_folder("sd15") / "vae", folder)
        (path,) = folder.glob("*.safetensors")
        tensors = load_file(path)
        tensors = {
            name: tensor * 1.5 if name.startswith("encoder.conv_out") else tensor for name, tensor in tensors.items()
        }
        save_file(tensors, path, metadata={"format": "pt"})
    return str(folder)


def model_tokenizer(watcher: Watcher) -> None:
    """A file that is one model has none in it: the folder's is used, and another one gives another text."""
    components = load_components("tiny:sd15", base_dir=watcher.folder)
    architecture = tiny_architecture(components, "sd1")
    path = watcher.folder / "tiny.safetensors"
    write_tiny(components, architecture, path)
    own = tiny_folder("sd15") / "tokenizer"
    other = Path(shutil.copytree(own, watcher.folder / "tokenizer"))
    vocabulary = json.loads((own / "vocab.json").read_text(encoding="utf-8"))
    vocabulary["a"], vocabulary["o"] = vocabulary["o"], vocabulary["a"]
    (other / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (other / "tokenizer.json").unlink(missing_ok=True)
    with mock.patch.object(recognise, "architectures", return_value={"tiny": architecture}):
        one = watcher.see({"model.base": str(path), "model.tokenizer": str(own)})
        changed = watcher.see({"model.base": str(path), "model.tokenizer": str(other)})
        with pytest.raises(ModelError, match="tokenizer"):
            watcher.see({"model.base": str(path)})
    assert same(one.texts, watcher.seen({}).texts)
    assert not same(one.texts, changed.texts)


def last_timestep(seen: Seen) -> float:
    """How much of the picture is left in what the UNet sees at the last timestep."""
    (one, *_) = seen.passes
    return float((one.noisy - one.draw.added).norm() / one.batch.latents.norm())


# ---- [train]


def train_parallel(watcher: Watcher) -> None:
    """As one of two processes: FSDP leaves it a share of every tensor, DDP all of them. Alone, FSDP is refused."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    def built(parallel: str) -> Any:
        values = {**FINETUNE, "train.parallel": parallel}
        return build_session(parse_config(watcher.text(values)), processes=Processes(0, 2, torch.device("cpu")))

    torch.distributed.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        shared, whole = built("fsdp"), built("ddp")
        assert all(isinstance(tensor, DTensor) for tensor in shared.tensors)
        assert not any(isinstance(tensor, DTensor) for tensor in whole.tensors)
        assert isinstance(whole.wrapped.unet, DistributedDataParallel)
        assert not isinstance(shared.wrapped.unet, DistributedDataParallel)
        local = sum(tensor.to_local().numel() for tensor in shared.tensors)
        assert local < 0.6 * sum(tensor.numel() for tensor in whole.tensors)
    finally:
        torch.distributed.destroy_process_group()
    with pytest.raises(Exception, match="nobody to share the weights with"):
        watcher.see({**FINETUNE, "train.parallel": "fsdp"})


def train_epochs(watcher: Watcher) -> None:
    """Four pictures in batches of two: an epoch has two steps."""
    seen = watcher.see({"train.steps": None, "train.epochs": 3})
    assert seen.finished.step == 6
    assert sorted(seen.visited) == sorted([0, 1, 2, 3] * 3)


# ---- [lora]


def lora_init_from(watcher: Watcher) -> None:
    first = watcher.seen({})
    again = watcher.see({"lora.init_from": str(first.finished.checkpoint / "weights")})
    assert all(torch.equal(tensor, first.weights[name]) for name, tensor in again.started.items())
    assert any(float(tensor.norm()) > 0 for name, tensor in again.started.items() if "lora_B" in name)
    assert all(float(tensor.norm()) == 0 for name, tensor in first.started.items() if "lora_B" in name)


def strengths(seen: Seen) -> dict[str, float]:
    return {pair.module: pair.scale for pair in seen.session.pairs}


def kernels(seen: Seen) -> set[float]:
    return {pair.scale for pair in seen.session.pairs if pair.kernel}


CASES: dict[str, Case | Own] = {
    "run.name": Case(
        "portraits",
        lambda seen: re.sub(r"-\d{8}-\d{6}(-\d+)?$", "", seen.run.name),  # without its time
        lambda before, after: (before, after) == ("run", "portraits"),
    ),
    "run.dir": Case(
        lambda watcher: str(watcher.folder / "elsewhere"),
        lambda seen: seen.run.parent.name,
        lambda before, after: (before, after) == ("runs", "elsewhere"),
    ),
    "run.seed": run_seed_drawn,
    "run.device": run_device,
    "model.base": Case("tiny:sdxl", shapes, lambda before, after: before.keys() != after.keys()),
    "model.tokenizer": model_tokenizer,
    "model.prediction_type": Case(
        "v_prediction",
        lambda seen: all(torch.equal(one.target, one.draw.noise) for one in seen.passes),
        lambda before, after: before and not after,
    ),
    "model.zero_terminal_snr": Case(
        True,
        last_timestep,
        lambda before, after: before > 0.01 and after < 1e-3,
        base=V,
    ),
    "model.clip_skip": Case(2, lambda seen: seen.texts, differ),
    "model.vae": Case(other_vae, lambda seen: seen.latents, lambda before, after: after.std() > before.std()),
    "train.method": Case(
        "finetune",
        lambda seen: (set(seen.weights), seen.files),
        lambda before, after: (
            all("lora_" in name for name in before[0]) and not any("lora_" in name for name in after[0])
        ),
    ),
    "train.parts": Case(
        ["unet", "text_encoder"],
        components,
        lambda before, after: before == {"unet"} and after == {"unet", "text_encoder"},
    ),
    "train.steps": Case(3, lambda seen: (seen.finished.step, len(seen.losses)), lambda before, after: after == (3, 3)),
    "train.epochs": train_epochs,
    "train.batch_size": Case(
        1,
        lambda seen: [len(one.batch.samples) for one in seen.passes],
        lambda before, after: (before, after) == ([2, 2], [1, 1]),
    ),
    "train.gradient_accumulation": Case(
        2,
        lambda seen: (len(seen.passes), seen.finished.step),
        lambda before, after: (before, after) == ((2, 2), (4, 2)),
    ),
    "train.max_grad_norm": Case(
        1e-4,
        lambda seen: (seen.column("steps", "grad_norm", "clip_coef")[0], seen.moved),
        lambda before, after: (
            before[0][1] == 1.0
            and math.isclose(after[0][1], 1e-4 / before[0][0], rel_tol=1e-2)
            # Steps of SGD are as long as the gradient is; AdamW's are not.
            and math.isclose(after[1], before[1] * after[0][1], rel_tol=1e-2)
        ),
        base={
            **FINETUNE,
            "train.steps": 1,
            "optimizer.type": "sgd-nesterov",
            "optimizer.lr": 0.1,
            "train.max_grad_norm": 1e9,
        },
    ),
    "train.gradient_checkpointing": Case(
        True, lambda seen: seen.blocks, lambda before, after: after == 2 * before, base=FINETUNE
    ),
    "train.parallel": train_parallel,
    "train.loss": Case("huber", lambda seen: seen.losses[0], smaller),
    "train.huber_delta": Case(0.01, lambda seen: seen.losses[0], smaller, base={"train.loss": "huber"}),
    "lora.rank": Case(
        2,
        shapes,
        lambda before, after: all(
            tensor[0] == 2 and before[name][0] == 4 for name, tensor in after.items() if "lora_A" in name
        ),
    ),
    "lora.alpha": Case(
        8.0, strengths, lambda before, after: set(before.values()) == {1.0} and set(after.values()) == {2.0}
    ),
    "lora.dropout": Case(0.9, lambda seen: seen.weights, differ, base={"train.steps": 3}),
    "lora.targets": Case(
        ["to_q"], adapted, lambda before, after: after < before and all(name.endswith("to_q") for name in after)
    ),
    "lora.text_encoder_targets": Case(
        ["fc1"],
        lambda seen: {name for name in adapted(seen) if name.startswith("text_encoder")},
        lambda before, after: after and all(name.endswith("fc1") for name in after),
        base=BOTH,
    ),
    "lora.conv_rank": Case(
        2,
        lambda seen: {tuple(pair.a.shape[::3]) for pair in seen.session.pairs if pair.kernel},
        lambda before, after: not before and after == {(2, 3)},
    ),
    "lora.conv_alpha": Case(8.0, kernels, lambda before, after: (before, after) == ({2.0}, {4.0}), base=CONV),
    "lora.init_from": lora_init_from,
}
