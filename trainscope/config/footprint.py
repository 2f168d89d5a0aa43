"""How many bytes weights, their gradients, the optimizer's state and the average take: by their shapes alone.

Preflight estimates by it before a training, the trainer before it saves. Knows nothing of torch or of files.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from trainscope.config.model import RunConfig
from trainscope.config.optimizer import Adafactor

Shape = Sequence[int]

FORMAT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
"""Bytes of an element by the name that `[precision]` has for its format."""

STATE_BYTES: dict[str, float] = {
    "adamw": 8.0,
    "adamw8bit": 2.1,
    "paged-adamw8bit": 2.1,
    "lion": 4.0,
    "lion8bit": 1.05,
    "paged-lion8bit": 1.05,
    "sgd-nesterov": 4.0,
    "sgd-nesterov8bit": 1.05,
    "dadapt-adam": 12.0,
    "dadapt-adam-preprint": 12.0,
    "dadapt-adagrad": 12.0,
    "dadapt-adan": 20.0,
    "dadapt-adan-ip": 20.0,
    "dadapt-lion": 8.0,
    "dadapt-sgd": 12.0,
    "adafactor": 0.0,
    "prodigy": 16.0,
    "adamw-schedulefree": 8.0,
    "radam-schedulefree": 8.0,
    "sgd-schedulefree": 4.0,
}
"""Bytes of optimizer state for each trained weight in float32, by `optimizer.type`; Adafactor's depend on shapes."""


def optimizer_state_bytes(config: RunConfig, shapes: Iterable[Shape]) -> int:
    """About how large the optimizer's state is for trained tensors of these shapes."""
    section, precision = config.optimizer, config.precision
    if isinstance(section, Adafactor):
        return sum(_adafactor_bytes(shape, first_moment=section.beta1 is not None) for shape in shapes)
    # State has the format of the weights as the optimizer sees them; 8-bit state is what it is.
    as_weights = not section.type.endswith("8bit") and not precision.stochastic_rounding
    size = FORMAT_BYTES[precision.weights] if as_weights else 4
    return round(STATE_BYTES[section.type] * size / 4 * sum(map(math.prod, shapes)))


def average_bytes(config: RunConfig, trained: int) -> int:
    """How large the average of so many trained weights is; 0 without one."""
    if not config.ema.enabled:
        return 0
    return trained * FORMAT_BYTES[config.precision.weights if config.ema.dtype == "weights" else config.ema.dtype]


def training_bytes(config: RunConfig, shapes: Sequence[Shape], frozen: int) -> tuple[int, int]:
    """What a training holds between its forward and its optimizer's step: (on its device, in the computer's memory).

    `shapes` are those of the trained tensors, `frozen` is the number of all other elements. The sum of the weights in
    the formats that `[precision]` has for them, a gradient for each trained one in its format, the optimizer's state
    and the average. Activations, copies for the probes, the libraries and what they reserve come to it. A paged
    optimizer's state does not count, since it gives way.
    """
    precision, trained = config.precision, sum(map(math.prod, shapes))
    weights = trained * FORMAT_BYTES[precision.weights] + frozen * FORMAT_BYTES[precision.base]
    gradients = trained * FORMAT_BYTES[precision.weights]
    state = 0 if config.optimizer.type.startswith("paged-") else optimizer_state_bytes(config, shapes)
    average = average_bytes(config, trained)
    elsewhere = average if config.ema.device == "cpu" else 0
    return weights + gradients + state + average - elsewhere, elsewhere


def saved_bytes(config: RunConfig, shapes: Sequence[Shape], frozen: int) -> int:
    """What a checkpoint of such a training takes on the disk, but for headers and JSON.

    The weights for use, and the same of the average: of a LoRA in two layouts, of a full fine-tune whole pipelines, in
    which `frozen` elements are as they are loaded. With `checkpoint.save_state` the trained weights as they are, the
    optimizer's state and the average besides.
    """
    precision, trained = config.precision, sum(map(math.prod, shapes))
    for_use = trained * FORMAT_BYTES[precision.save]
    for_use = for_use + frozen * FORMAT_BYTES[precision.base] if config.train.method == "finetune" else 2 * for_use
    total = for_use * (2 if config.ema.enabled else 1)
    if config.checkpoint.save_state:
        total += trained * FORMAT_BYTES[precision.weights]
        total += optimizer_state_bytes(config, shapes) + average_bytes(config, trained)
    return total


def _adafactor_bytes(shape: Shape, *, first_moment: bool) -> int:
    """Sums over the last dimension and over the one before it, in float32; a vector's are its squares."""
    numel = math.prod(shape)
    sums = numel if len(shape) < 2 else numel // shape[-1] + numel // shape[-2]
    return 4 * (sums + (numel if first_moment else 0))
