"""The memory and the disk that a plan needs, beside what there is: `plan.*` keys that preflight alone works out.

Estimates from below: what they say is too much is too much. Knows nothing of how a model is found.
"""

from __future__ import annotations

from pathlib import Path

from trainscope.config.footprint import saved_bytes, training_bytes
from trainscope.config.load import ResolvedConfig
from trainscope.config.model import RunConfig
from trainscope.config.plan import Plan
from trainscope.engine.preflight.activations import activation_bytes
from trainscope.engine.preflight.machine import computer_memory, free_disk, gpu_memory
from trainscope.engine.preflight.model import Model
from trainscope.engine.preflight.samples import Pictures
from trainscope.engine.preflight.trained import Trained

Keys = dict[str, int | str | None]


def there(resolved: ResolvedConfig, out: Path | None) -> Keys:
    """What this machine has, in bytes: the memory that the training will lie in, and the disk of `out`, else `run.dir`.

    What nobody tells is left out.
    """
    device = resolved.config.run.device
    gpu = gpu_memory(device)
    on_gpu = gpu is not None or device.startswith("cuda")
    found: Keys = {
        "plan.memory_place": "the GPU" if on_gpu else "this machine",
        "plan.memory_there_bytes": gpu if on_gpu else computer_memory(),
        "plan.disk_free_bytes": free_disk(out or resolved.resolve_path(resolved.config.run.dir)),
    }
    return {key: value for key, value in found.items() if value is not None}


def needed(
    config: RunConfig, plan: Plan, model: Model, trained: list[Trained], pictures: Pictures, on_gpu: bool
) -> Keys:
    """What the plan needs, in bytes.

    memory = weights + gradients + optimizer state + average (`config.footprint`) + activations; the disk holds
    `plan.checkpoints` checkpoints at once.
    """
    shapes = [tensor.shape for tensor in trained]
    own = {tensor.weight.param for tensor in trained if tensor.weight is not None}
    frozen = sum(weight.numel for weight in model.weights if weight.param not in own)
    on_device, on_host = training_bytes(config, shapes, frozen)
    batch, size = pictures.largest_batch(config.train.batch_size)
    latent = (max(1, size[0] // model.latent_scale), max(1, size[1] // model.latent_scale))
    itemsize = compute_bytes(config, on_gpu=on_gpu)
    activations = activation_bytes(config, model.weights, batch, latent, itemsize)
    checkpoint = saved_bytes(config, shapes, frozen)
    return {
        "plan.trained_elements": sum(tensor.numel for tensor in trained),
        "plan.memory_bytes": on_device + activations + (0 if on_gpu else on_host),
        "plan.activation_bytes": activations,
        "plan.largest_batch": batch,
        "plan.checkpoint_bytes": checkpoint,
        "plan.disk_bytes": checkpoint * plan.checkpoints,
    }


def compute_bytes(config: RunConfig, *, on_gpu: bool) -> int:
    """Bytes of an activation: those of `precision.compute`, of which auto takes two on any GPU of today."""
    precision = config.precision
    if precision.compute != "auto":
        return 4 if precision.compute == "fp32" else 2
    return 2 if on_gpu or {precision.weights, precision.base} != {"fp32"} else 4
