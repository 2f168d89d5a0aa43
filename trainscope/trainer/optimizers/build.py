"""`[optimizer]` → an object of the library that has it.

A new optimizer is a model in `config.optimizers` and an entry of `BUILDERS`. Knows nothing of what is optimized.
"""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from trainscope.config.optimizer import PAGED, SGDNesterov8bit, component_lr

Groups = list[dict[str, Any]]
Options = dict[str, Any]
Build = Callable[[Groups, Options, int], torch.optim.Optimizer]
"""(parameter groups, the section's keys but `type` and the components' rates, warmup steps) → the optimizer."""


def build_optimizer(
    section: Any, params: Mapping[str, Sequence[torch.nn.Parameter]], *, warmup_steps: int
) -> torch.optim.Optimizer:
    """The optimizer of an `[optimizer]` section over one group for each component, named after it.

    `warmup_steps` is for those that warm up by themselves; the others leave it to the schedule.
    """
    groups: Groups = [
        {"params": list(tensors), "name": component, "lr": component_lr(section, component)}
        for component, tensors in params.items()
    ]
    options = section.model_dump(exclude={"type", "unet_lr", "text_encoder_lr"})
    device = next((tensor.device for tensors in params.values() for tensor in tensors), torch.device("cpu"))
    kind = section.type.removeprefix("paged-") if _cannot_page(section, device) else section.type
    with contextlib.redirect_stdout(io.StringIO()):  # some print "Using decoupled weight decay"
        return BUILDERS[kind](groups, options, warmup_steps)


def fallback(section: Any, device: torch.device) -> str | None:
    """What an optimizer does in another way than its section asks for, in a sentence; None if nothing."""
    if _cannot_page(section, device):
        plain = section.type.removeprefix("paged-")
        return f"{section.type} pages its state out of a CUDA GPU's memory only; on {device.type} it is {plain}"
    if isinstance(section, SGDNesterov8bit):
        return "sgd-nesterov8bit steps plain momentum: bitsandbytes takes Nesterov's as an argument and ignores it"
    return None


def _cannot_page(section: Any, device: torch.device) -> bool:
    return isinstance(section, PAGED) and device.type != "cuda"


def _of(module: str, name: str, **fixed: Any) -> Build:
    """An optimizer whose arguments have the names of the section's keys. Its library is imported when it is built."""

    def build(groups: Groups, options: Options, warmup_steps: int) -> torch.optim.Optimizer:
        made: torch.optim.Optimizer = getattr(importlib.import_module(module), name)(groups, **options, **fixed)
        return made

    return build


def _of_torch(name: str, **fixed: Any) -> Build:
    """One of torch's own. In float32 its fused kernel steps: the same formula in one pass, several times as quick, and
    without copies.

    It would compute in float32 in lower precision, too, and round once at the end: fewer updates are lost than with
    what other trainers run there, and not what `precision.weights` is understood to mean.
    """

    def build(groups: Groups, options: Options, warmup_steps: int) -> torch.optim.Optimizer:
        tensors = [tensor for group in groups for tensor in group["params"]]
        fused = all(tensor.dtype == torch.float32 and tensor.device.type in FUSED for tensor in tensors)
        how = {"fused": True} if fused else {"foreach": True}
        return _of("torch.optim", name, **fixed, **how)(groups, options, warmup_steps)

    return build


FUSED = ("cpu", "cuda", "mps", "xpu")
"""Kinds of device that torch has fused optimizers for."""


def _adafactor(groups: Groups, options: Options, warmup_steps: int) -> torch.optim.Optimizer:
    from transformers.optimization import Adafactor

    if not options["relative_step"]:
        made: torch.optim.Optimizer = Adafactor(groups, **options)
        return made
    # It refuses a rate that it is not going to use; a schedule has to have one.
    rates = [group.pop("lr") for group in groups]
    made = Adafactor(groups, **{**options, "lr": None})
    for group, rate in zip(made.param_groups, rates, strict=True):
        group["lr"] = rate
    return made


def _schedule_free(name: str, *, warms_up: bool) -> Build:
    def build(groups: Groups, options: Options, warmup_steps: int) -> torch.optim.Optimizer:
        import schedulefree

        own = {"warmup_steps": warmup_steps} if warms_up else {}
        made: Any = getattr(schedulefree, name)(groups, **options, **own)
        made.train()  # it refuses to step before
        trained: torch.optim.Optimizer = made
        return trained

    return build


BUILDERS: dict[str, Build] = {
    "adamw": _of_torch("AdamW"),
    "adamw8bit": _of("bitsandbytes.optim", "AdamW8bit"),
    "paged-adamw8bit": _of("bitsandbytes.optim", "PagedAdamW8bit"),
    "lion": _of("lion_pytorch", "Lion"),
    "lion8bit": _of("bitsandbytes.optim", "Lion8bit"),
    "paged-lion8bit": _of("bitsandbytes.optim", "PagedLion8bit"),
    "sgd-nesterov": _of_torch("SGD", nesterov=True),
    "sgd-nesterov8bit": _of("bitsandbytes.optim", "SGD8bit", nesterov=True),
    "dadapt-adam": _of("dadaptation", "DAdaptAdam"),
    "dadapt-adam-preprint": _of("dadaptation.experimental", "DAdaptAdamPreprint"),
    "dadapt-adagrad": _of("dadaptation", "DAdaptAdaGrad"),
    "dadapt-adan": _of("dadaptation", "DAdaptAdan"),
    "dadapt-adan-ip": _of("dadaptation.experimental", "DAdaptAdanIP"),
    "dadapt-lion": _of("dadaptation", "DAdaptLion"),
    "dadapt-sgd": _of("dadaptation", "DAdaptSGD"),
    "adafactor": _adafactor,
    "prodigy": _of("prodigyopt", "Prodigy"),
    "adamw-schedulefree": _schedule_free("AdamWScheduleFree", warms_up=True),
    "radam-schedulefree": _schedule_free("RAdamScheduleFree", warms_up=False),
    "sgd-schedulefree": _schedule_free("SGDScheduleFree", warms_up=True),
}
"""By `optimizer.type`."""
