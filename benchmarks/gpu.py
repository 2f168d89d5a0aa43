"""What looking costs on a GPU: a UNet of SDXL's size with random weights, looked at every step and not, in turns.

Prints the ratio of both with its spread; for a full fine-tune also what the memory that a look must read and write
takes at the bandwidth of a copy: the floor. Before anything is timed, a look is taken where PyTorch raises an error if
the host waits for the device. `--size tiny` tries it where there is no such GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import resources
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from trainscope.probes.adapters import AdaptersProbe
from trainscope.probes.pending import Pending, collect
from trainscope.probes.tensors import TensorsProbe
from trainscope.trainer.models.lora import add_lora

ROUNDS, BLOCK = 9, 5
MEMORY_BYTES = 60 * 2**30
"""Room for copies of all weights."""
FLOOR_BYTES = 8 * 4 + 2
"""What a look cannot but move for an element in float32: the gradient, the weights, their copy, and all of them again
after the step with the weights at the start and two moments; and where the gradient was 0, a byte, twice.
"""
SMALLER = {
    "sample_size": 16,
    "block_out_channels": (32, 64, 64),
    "transformer_layers_per_block": 1,
    "attention_head_dim": 4,
}


@dataclass
class Training:
    """A model that takes steps on noise."""

    unet: Any
    params: dict[str, torch.Tensor]
    optimizer: torch.optim.Optimizer
    compute: torch.dtype
    looks: list[Any]
    pending: list[Pending]

    def __post_init__(self) -> None:
        device = next(self.unet.parameters()).device
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.compute is torch.float16)
        size, config = self.unet.config.sample_size, self.unet.config
        text = torch.randn(1, 77, config.cross_attention_dim, device=device)
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        added = {"text_embeds": torch.randn(1, pooled, device=device), "time_ids": torch.ones(1, 6, device=device)}
        latents = torch.randn(1, 4, size, size, device=device)
        self.forward = partial(self.unet, latents, torch.tensor([500], device=device), text, added_cond_kwargs=added)

    def step(self, number: int, *, looking: bool) -> None:
        with torch.autocast(next(self.unet.parameters()).device.type, dtype=self.compute):
            loss = self.forward().sample.float().square().mean()
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        tensors, *others = self.looks
        if looking:
            tensors.before_step()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if looking:
            self.pending += [tensors.after_step(number), *(look.measure(number) for look in others)]
        self.optimizer.zero_grad()
        if len(self.pending) >= 10 * len(self.looks):
            collect(self.pending)
            self.pending.clear()


def make(size: str, method: str, kind: str, compute: torch.dtype, device: torch.device) -> Training:
    text = resources.files("trainscope.trainer.models").joinpath("published", "sdxl.json").read_text(encoding="utf-8")
    with device:
        unet: Any = UNet2DConditionModel.from_config(json.loads(text)["unet"] | (SMALLER if size == "tiny" else {}))
    unet.enable_gradient_checkpointing()
    pairs = add_lora(unet, rank=16, alpha=16.0, seed=0) if method == "lora" else []
    params = {name: param for name, param in unet.named_parameters() if param.requires_grad}
    if kind == "adamw8bit":
        from bitsandbytes.optim import AdamW8bit

        optimizer: torch.optim.Optimizer = AdamW8bit(params.values(), lr=1e-5)
    else:
        optimizer = torch.optim.AdamW(params.values(), lr=1e-5, fused=True)
    looks: list[Any] = [TensorsProbe(params, optimizer, memory_bytes=MEMORY_BYTES)]
    return Training(unet, params, optimizer, compute, looks + ([AdaptersProbe(pairs)] if pairs else []), [])


@contextmanager
def waiting_is_an_error(device: torch.device) -> Iterator[None]:
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    yield
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("default")


def seconds(work: Any, device: torch.device) -> float:
    for wait in (True, False):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if wait:
            started = time.perf_counter()
            work()
    return time.perf_counter() - started


def bandwidth(device: torch.device) -> float:
    """Bytes a second that a copy reads and writes."""
    source = torch.ones(2**28 if device.type == "cuda" else 2**24, device=device)
    target = torch.empty_like(source)
    taken = statistics.median(seconds(lambda: target.copy_(source), device) for _ in range(7))
    return 2 * source.nbytes / taken


def show(training: Training, name: str, floor: float | None, device: torch.device) -> None:
    for number in (1, 2):
        training.step(number, looking=True)
    with waiting_is_an_error(device):
        training.looks[0].before_step()
        training.looks[0].after_step(3)
    block = {
        looking: partial(lambda on: [training.step(n, looking=on) for n in range(BLOCK)], looking)
        for looking in (False, True)
    }
    pairs = [(seconds(block[False], device) / BLOCK, seconds(block[True], device) / BLOCK) for _ in range(ROUNDS)]
    low, middle, high = statistics.quantiles([looking / plain for plain, looking in pairs], n=4)
    plain, more = statistics.median(p for p, _ in pairs), statistics.median(b - a for a, b in pairs)
    line = f"{name:34}{plain * 1e3:9.1f} ms   {middle:.3f} ({low:.3f} – {high:.3f})   {more * 1e3:.2f} ms a look"
    print(line + ("" if floor is None else f", floor {floor * 1e3:.2f} ms: {more / floor:.2f} times"), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=["sdxl", "tiny"], default="sdxl")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    device = torch.device(options.device)
    speed = bandwidth(device)
    print(f"{device}: {speed / 1e9:.0f} GB/s")
    for method in ("lora", "finetune"):
        for kind in ("adamw", "adamw8bit"):
            for compute in (torch.bfloat16, torch.float16):
                training = make(options.size, method, kind, compute, device)
                elements = sum(param.numel() for param in training.params.values())
                floor = None if method == "lora" else elements * FLOOR_BYTES / speed
                show(training, f"{method}, {kind}, {compute}".replace("torch.", ""), floor, device)
                del training
                if device.type == "cuda":
                    torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
