"""The memory and the disk that preflight estimates, against what a training takes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from trainscope.config.load import ResolvedConfig
from trainscope.engine.preflight import machine, preflight_source
from trainscope.engine.preflight.machine import computer_memory, free_disk, gpu_memory
from trainscope.engine.tables import config_values
from trainscope.proof.runs import RunSpec
from trainscope.trainer.build import build_session
from trainscope.trainer.checkpoints.disk import OVERHEAD_BYTES, checkpoint_bytes
from trainscope.trainer.models.tiny import tiny_folder
from trainscope.trainer.session import Session


def planned(resolved: ResolvedConfig) -> dict[str, Any]:
    for name in ("sd15", "sdxl"):
        tiny_folder(name)
    return config_values(preflight_source(resolved))


def stepped(session: Session) -> Session:
    """With gradients, and with the optimizer's state."""
    for param in session.tensors:
        param.grad = torch.full_like(param, 0.01)
    if session.rounding is None:
        session.optimizer.step()
    else:
        with session.rounding.float32_weights():
            session.optimizer.step()
    for param in session.tensors:
        param.grad = torch.full_like(param, 0.01)  # the next backward pass, which is when most is held
    return session


def held(session: Session) -> int:
    """Bytes of the tensors that a training holds beside its activations."""
    models = [session.components.vae, *session.components.models.values()]
    tensors = [param for model in models for param in model.parameters()]
    tensors += [param.grad for param in session.tensors if param.grad is not None]
    state = [value for values in session.optimizer.state.values() for value in values.values()]
    tensors += [value for value in state if isinstance(value, torch.Tensor) and value.ndim]
    tensors += session.ema.shadow_params if session.ema is not None else []
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


FINETUNE: dict[str, Any] = {}
LORA: dict[str, Any] = {"train.method": "lora", "lora.rank": 512}
CONFIGS: list[dict[str, Any]] = [
    FINETUNE,
    LORA,
    {"model.base": "tiny:sdxl", "train.parts": ["unet", "text_encoder"], "ema.enabled": True},
    {"ema.enabled": True, "ema.dtype": "bf16", "optimizer.type": "prodigy", "ema.device": "cpu"},
    {"precision.weights": "bf16", "ema.enabled": True, "ema.dtype": "weights"},
    {**LORA, "precision.weights": "bf16", "precision.base": "bf16", "precision.stochastic_rounding": True},
    {"optimizer.type": "adafactor"},
    {**LORA, "optimizer.type": "adamw8bit", "optimizer.min_8bit_size": 256, "train.parts": ["unet", "text_encoder"]},
]


def quick(choices: list[Any], *places: int) -> list[Any]:
    """All of them, those that are not at `places` marked slow."""
    return [
        choice
        if place in places
        else pytest.param(*(choice if isinstance(choice, tuple) else (choice,)), marks=pytest.mark.slow)
        for place, choice in enumerate(choices)
    ]


@pytest.mark.parametrize("changes", quick(CONFIGS, 1, 2), ids=str)
def test_memory_beside_activations_is_what_the_training_holds(changes: dict[str, Any]) -> None:
    resolved = RunSpec(changes).resolved()
    plan = planned(resolved)
    session = stepped(build_session(resolved))
    estimate = plan["plan.memory_bytes"] - plan["plan.activation_bytes"]
    assert estimate == pytest.approx(held(session), rel=0.02)
    assert plan["plan.trained_elements"] == sum(param.numel() for param in session.tensors)


@pytest.mark.parametrize("changes", quick(CONFIGS, 2), ids=str)
def test_the_disk_is_what_the_trainer_expects(changes: dict[str, Any]) -> None:
    resolved = RunSpec({**changes, "checkpoint.save_state": True, "precision.save": "fp16"}).resolved()
    expected = checkpoint_bytes(stepped(build_session(resolved))) - OVERHEAD_BYTES
    assert planned(resolved)["plan.checkpoint_bytes"] == pytest.approx(expected, rel=0.01)


def kept_for_backward(session: Session, batch: int, side: int) -> int:
    """Bytes of the activations that one forward pass of the UNet leaves for its backward pass, as autograd has them."""
    params = {
        param.untyped_storage().data_ptr()
        for model in session.components.models.values()
        for param in model.parameters()
    }
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in params:
            kept[storage.data_ptr()] = storage  # held, so that no other takes its place
        return tensor

    unet = session.components.unet
    text = torch.randn(
        batch, 77, unet.config.cross_attention_dim, requires_grad="text_encoder" in session.config.train.parts
    )
    added = None
    if session.components.sdxl:
        pooled = session.components.text_encoders[1].config.projection_dim
        added = {"text_embeds": torch.randn(batch, pooled), "time_ids": torch.zeros(batch, 6)}
    latents = torch.randn(batch, unet.config.in_channels, side, side)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), session.autocast():
        output = unet(latents, torch.zeros(batch), text, added_cond_kwargs=added).sample
    total = sum(storage.nbytes() for storage in kept.values())
    output.sum().backward()
    return total


@pytest.mark.parametrize(
    ("changes", "at_least"),
    quick(
        [
            ({}, 0.5),
            ({"train.method": "lora"}, 0.15),
            ({"train.method": "lora", "lora.conv_rank": 4}, 0.25),
            ({"model.base": "tiny:sdxl"}, 0.5),
            ({"model.base": "tiny:sdxl", "train.method": "lora"}, 0.15),
            ({"model.base": "tiny:sdxl", "train.method": "lora", "lora.targets": ["ff.net.2"]}, 0.2),
            ({"model.base": "tiny:sdxl", "train.parts": ["text_encoder"]}, 0.15),
            ({"precision.compute": "bf16"}, 0.5),
            ({"train.gradient_checkpointing": True}, 0.4),
        ],
        0,
        4,
    ),
    ids=str,
)
def test_activations_are_a_lower_bound_and_no_idle_one(changes: dict[str, Any], at_least: float) -> None:
    resolved = RunSpec({**changes, "train.batch_size": 8, "data.resolution": 128}).resolved()
    plan = planned(resolved)
    assert plan["plan.largest_batch"] == 8
    measured = kept_for_backward(build_session(resolved), 8, 16)
    assert at_least * measured < plan["plan.activation_bytes"] <= measured


def test_the_largest_batch_is_that_of_the_fullest_bucket() -> None:
    buckets = {"enabled": True, "min": 32, "max": 128, "step": 16}
    changes = {f"data.buckets.{key}": value for key, value in buckets.items()}
    plan = planned(RunSpec({**changes, "train.batch_size": 64}).resolved())
    assert 1 < plan["plan.largest_batch"] < 25
    assert planned(RunSpec({"train.batch_size": 64}).resolved())["plan.largest_batch"] == 25
    assert planned(RunSpec({"train.batch_size": 64, "data.repeats": 2}).resolved())["plan.largest_batch"] == 50


# ---- the machine


def test_a_limit_of_the_container_or_the_shell_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    whole = computer_memory()
    assert whole is not None
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("max\n")
    assert computer_memory() is not None
    (tmp_path / "memory.max").write_text("123456789\n")
    assert computer_memory() == 123456789
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (5_000_000, resource.RLIM_INFINITY))
    assert computer_memory() == 5_000_000


GPUS = "0, GPU-aaaa, 81559\n1, GPU-bbbb, 24564\n"


@pytest.mark.parametrize(
    ("device", "visible", "mib"),
    [
        ("auto", None, 81559),
        ("cuda", None, 81559),
        ("cuda:1", None, 24564),
        ("cuda:2", None, None),
        ("cuda", "1", 24564),
        ("cuda:1", "GPU-bbbb,0", 81559),
        ("auto", "", None),
        ("cpu", None, None),
        ("mps", None, None),
    ],
)
def test_the_memory_of_a_gpu(
    device: str, visible: str | None, mib: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=GPUS))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpu_memory(device) == (None if mib is None else mib * 2**20)


def test_no_gpu_is_told_where_nobody_knows_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert gpu_memory("cuda") is None
    plan = planned(RunSpec({"run.device": "cuda"}).resolved())
    assert "plan.memory_bytes" in plan
    assert "plan.memory_there_bytes" not in plan


def test_the_disk_is_that_of_the_nearest_folder_that_is_there(tmp_path: Path) -> None:
    free = free_disk(tmp_path / "not" / "yet")
    assert free is not None
    assert free == pytest.approx(free_disk(tmp_path), rel=0.1)
