"""What the objects of a training say about its configuration, as keys of cfg.toml.

A key that nothing says is left out: a rule that needs it is then not observable, and not silently inapplicable. Knows
nothing of the configuration's classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from trainscope.integrations.averages import Average
from trainscope.integrations.lora import LayerPair

TYPES = {
    "torch.optim.adamw.AdamW": "adamw",
    "torch.optim.sgd.SGD": "sgd-nesterov",
    "bitsandbytes.optim.adamw.AdamW8bit": "adamw8bit",
    "bitsandbytes.optim.adamw.PagedAdamW8bit": "paged-adamw8bit",
    "bitsandbytes.optim.lion.Lion8bit": "lion8bit",
    "bitsandbytes.optim.lion.PagedLion8bit": "paged-lion8bit",
    "bitsandbytes.optim.sgd.SGD8bit": "sgd-nesterov8bit",
    "lion_pytorch.lion_pytorch.Lion": "lion",
    "prodigyopt.prodigy.Prodigy": "prodigy",
    "transformers.optimization.Adafactor": "adafactor",
    "dadaptation.dadapt_adam.DAdaptAdam": "dadapt-adam",
    "dadaptation.experimental.dadapt_adam_preprint.DAdaptAdamPreprint": "dadapt-adam-preprint",
    "dadaptation.dadapt_adagrad.DAdaptAdaGrad": "dadapt-adagrad",
    "dadaptation.dadapt_adan.DAdaptAdan": "dadapt-adan",
    "dadaptation.experimental.dadapt_adan_ip.DAdaptAdanIP": "dadapt-adan-ip",
    "dadaptation.dadapt_lion.DAdaptLion": "dadapt-lion",
    "dadaptation.dadapt_sgd.DAdaptSGD": "dadapt-sgd",
    "schedulefree.adamw_schedulefree.AdamWScheduleFree": "adamw-schedulefree",
    "schedulefree.radam_schedulefree.RAdamScheduleFree": "radam-schedulefree",
    "schedulefree.sgd_schedulefree.SGDScheduleFree": "sgd-schedulefree",
}
"""`optimizer.type` by class; another class goes by its own name in lower case, which is none of cfg.toml's."""

DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
OWN = {"params", "lr", "initial_lr", "param_names", "name"}


def optimizer_type(optimizer: torch.optim.Optimizer) -> str:
    """The value of `optimizer.type`; that of plain SGD without Nesterov's momentum is its own."""
    kind = type(optimizer)
    names = [f"{cls.__module__}.{cls.__qualname__}" for cls in kind.__mro__]
    found = next((TYPES[name] for name in names if name in TYPES), kind.__name__.lower())
    if found == "sgd-nesterov" and not optimizer.param_groups[0].get("nesterov"):
        return "sgd"
    return found


def observed_keys(
    optimizer: torch.optim.Optimizer,
    trained: Mapping[str, Tensor],
    pairs: Sequence[LayerPair],
    average: Average | None,
    scaler: object | None,
) -> dict[str, Any]:
    """Dotted keys and values."""
    return {
        **dict(_of_optimizer(optimizer)),
        **dict(_of_weights(trained, pairs)),
        **({} if average is None else average_keys(average)),
        **({} if scaler is None else {"precision.compute": "fp16"}),
    }


def average_keys(average: Average) -> dict[str, Any]:
    """The keys of an average, which may come later than the others."""
    shadow = average.shadows()[0].dtype
    found: dict[str, Any] = {"ema.enabled": True, "ema.dtype": DTYPES.get(shadow, str(shadow))}
    if average.asked_decay is not None:
        found["ema.decay"] = average.asked_decay
    return found


def _of_optimizer(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Any]]:
    group = optimizer.param_groups[0]
    yield "optimizer.type", optimizer_type(optimizer)
    # A scheduler that is there already has put its own first value in place of the one that was asked for.
    yield "optimizer.lr", _number(group.get("initial_lr", group["lr"]))
    for key, value in group.items():
        plain = list(value) if isinstance(value, tuple) else _number(value)
        numbers = isinstance(plain, bool | int | float) or (
            isinstance(plain, list) and all(isinstance(item, int | float) for item in plain)
        )
        if key not in OWN and numbers:
            yield f"optimizer.{key}", plain


def _of_weights(trained: Mapping[str, Tensor], pairs: Sequence[LayerPair]) -> Iterator[tuple[str, Any]]:
    adapters = {id(tensor) for pair in pairs for tensor in (pair.a, pair.b)}
    yield "train.method", "lora" if any(id(tensor) in adapters for tensor in trained.values()) else "finetune"
    yield "train.parts", list(dict.fromkeys(name.partition(".")[0] for name in trained))
    sizes: dict[torch.dtype, int] = {}
    for tensor in trained.values():
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.numel()
    most = max(sizes, key=lambda dtype: sizes[dtype])
    yield "precision.weights", DTYPES.get(most, str(most).removeprefix("torch."))
    if pairs:
        yield "lora.rank", pairs[0].rank
        yield "lora.alpha", pairs[0].alpha


def _number(value: Any) -> Any:
    return float(value) if isinstance(value, Tensor) and value.numel() == 1 else value
