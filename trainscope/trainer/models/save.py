"""Writes trained weights for use: LoRA files in diffusers' and in kohya's layout, or a whole pipeline folder.

Everything is written beside its place, synced to the disk and renamed, so that a crash leaves the old weights or the
new ones and never half of them. Knows nothing of training state: optimizers and random states are saved elsewhere.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from trainscope.errors import ModelError
from trainscope.lora.adapters import METADATA_KEY
from trainscope.lora.contradictions import misread_by_diffusers
from trainscope.lora.convert import alpha_tensor
from trainscope.lora.header import CHECKSUM_KEY, Strength, adapter, network
from trainscope.lora.kohya import LAYERS, LAYERS_KEY, canonical, kohya_name
from trainscope.lora.tensors import NewTensor
from trainscope.lora.write import serialized
from trainscope.trainer.models.load import Components
from trainscope.trainer.models.lora import LoraPair
from trainscope.trainer.models.pipelines import build_pipeline, pipeline_class
from trainscope.trainer.models.quiet import quiet_libraries

LORA_FILE = "pytorch_lora_weights.safetensors"
"""The name that `pipe.load_lora_weights(folder)` looks for."""
_FORMATS = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
"""safetensors' names."""


def save_lora(
    folder: Path,
    pairs: Sequence[LoraPair],
    *,
    dtype: torch.dtype = torch.float32,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write `pairs` to `folder`/pytorch_lora_weights.safetensors in diffusers' layout and `dtype`; return the file.

    Rank, alpha and targets go into the header as diffusers' `lora_adapter_metadata`: without it a loader takes alpha
    for the rank, and the LoRA acts with another strength than it was trained with. `metadata` is added to the header.
    Raises `ModelError` when there is no LoRA.
    """
    if not pairs:
        raise ModelError("the model has no LoRA to save")
    tensors = {}
    adapters: dict[str, Any] = {}
    for component in dict.fromkeys(pair.component for pair in pairs):
        own = [pair for pair in pairs if pair.component == component]
        strengths = [Strength(component, pair.path, pair.rank, pair.alpha) for pair in own]
        adapters |= {f"{component}.lora_dropout": own[0].dropout, **adapter(strengths, f"{component}.", {})}
        for pair in own:
            stem = f"{component}.{canonical(component, pair.path)}"
            tensors[f"{stem}.lora_A.weight"] = _stored(pair.a, dtype)
            tensors[f"{stem}.lora_B.weight"] = _stored(pair.b, dtype)
    header = {**(metadata or {}), "format": "pt", METADATA_KEY: json.dumps(adapters, sort_keys=True)}
    return _write(folder / LORA_FILE, tensors, header)


def save_kohya_lora(
    path: Path,
    pairs: Sequence[LoraPair],
    *,
    sdxl: bool = False,
    layers: int = LAYERS,
    dtype: torch.dtype = torch.float32,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write `pairs` to `path` in kohya's layout and `dtype`; return the file.

    `layers` is the UNet's `layers_per_block`. Where convolutions have an alpha of their own and outnumber the linear
    layers, diffusers would give their alpha to the attentions: they get the linear layers' then, and what that changes
    is put into their weights. `metadata` is added to what is said of the network.
    """
    tensors = {}
    strengths = []
    for pair in pairs:
        stem = kohya_name(pair.component, pair.path, sdxl=sdxl, layers=layers)
        if stem is None:
            raise ModelError(f"{pair.module} has no name in kohya's layout", hint="leave it out of lora.targets")
        alpha = _readable_alpha(pair, pairs)
        strengths.append(Strength(pair.component, pair.path, pair.rank, alpha, pair.kernel))
        tensors[f"{stem}.lora_down.weight"] = _stored(pair.a, dtype)
        tensors[f"{stem}.lora_up.weight"] = _stored(pair.b.detach() * (pair.alpha / alpha), dtype)
        tensors[f"{stem}.alpha"] = alpha_tensor(alpha, tensors[f"{stem}.lora_up.weight"].dtype)
    dropout = {"ss_network_dropout": f"{pairs[0].dropout:g}"} if pairs[0].dropout else {}
    depth = {LAYERS_KEY: str(layers)} if layers != LAYERS else {}
    header = {**(metadata or {}), "format": "pt", **network(strengths), **dropout, **depth, CHECKSUM_KEY: ""}
    return _write(path, tensors, header)


def _readable_alpha(pair: LoraPair, pairs: Sequence[LoraPair]) -> float:
    """The pair's alpha, or the linear layers' where diffusers would take a convolution's for them."""
    own = [other for other in pairs if other.component == pair.component]
    strengths = [Strength(other.component, other.path, other.rank, other.alpha) for other in own]
    if not misread_by_diffusers(strengths):
        return pair.alpha
    return next(other.alpha for other in own if not other.kernel)


def _stored(tensor: Tensor, dtype: torch.dtype) -> NewTensor:
    cast = tensor.detach().to("cpu", dtype).contiguous()
    return NewTensor(_FORMATS[dtype], tuple(cast.shape), cast.reshape(-1).view(torch.uint8).numpy().tobytes())


def _write(path: Path, tensors: Mapping[str, NewTensor], metadata: Mapping[str, str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with _beside(path) as temporary:
        with (temporary / path.name).open("wb") as file:
            file.writelines(serialized(tensors, metadata))
        _settle(temporary)
        (temporary / path.name).replace(path)
        _sync(path.parent)
    return path


def save_pipeline(
    folder: Path,
    components: Components,
    *,
    dtype: torch.dtype = torch.float32,
    trained: Collection[str] = ("unet",),
) -> Path:
    """Write `components` as a diffusers folder; one that is there is replaced; return it.

    The `trained` models are written in `dtype`, the rest in the format that it has. The live models are left as they
    are: copies without storage take the cast tensors. Raises `ModelError` for models with a LoRA, whose tensors have
    other names.
    """
    with_lora = [name for name, model in components.models.items() if getattr(model, "peft_config", None)]
    if with_lora:
        raise ModelError(f"there is a LoRA on {' and '.join(with_lora)}; save it with save_lora")
    cast = {name: cast_copy(model, dtype) if name in trained else model for name, model in components.models.items()}
    with quiet_libraries():
        pipeline = build_pipeline(components, **cast)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _beside(folder) as temporary:
            pipeline.save_pretrained(temporary / "new", safe_serialization=True)
            _settle(temporary)
            if folder.exists():  # a folder cannot be renamed onto another
                folder.rename(temporary / "old")
            (temporary / "new").rename(folder)
            _sync(folder.parent)
    return folder


def cast_copy(model: Any, dtype: torch.dtype) -> Any:
    """A copy of a diffusers or transformers model on the CPU, its floating-point tensors in `dtype`.

    `model` is not touched.
    """
    with torch.device("meta"):
        own = hasattr(model, "from_config")  # diffusers' models; transformers' take their configuration as it is
        copy = type(model).from_config(model.config) if own else type(model)(model.config)
    saved = copy.state_dict().keys()
    # Not the model's own state_dict(): FSDP's would spread again what was put together to be saved.
    tensors = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    state = {
        name: tensor.detach().to("cpu", dtype if tensor.is_floating_point() else tensor.dtype)
        for name, tensor in tensors.items()
        if name in saved
    }
    copy.load_state_dict(state, assign=True)
    return copy.eval()


def usage_hint(
    kind: Literal["lora", "finetune"], path: Path, inpainting: bool, base: str = "BASE MODEL", *, sdxl: bool = False
) -> str:
    """Python that loads the trained weights in diffusers: `path` is what `save_lora` or `save_pipeline` returned.

    `base` is the model that a LoRA was trained on, a folder or a single file.
    """
    name = pipeline_class(inpainting, sdxl=sdxl)
    call = 'pipe("a prompt", image=image, mask_image=mask)' if inpainting else 'pipe("a prompt")'
    lines = [f"from diffusers import {name}"]
    if kind == "lora":
        load = "from_single_file" if base.endswith(".safetensors") else "from_pretrained"
        lines.append(f'pipe = {name}.{load}("{base}")')
        lines.append(f'pipe.load_lora_weights("{path.parent.as_posix()}")')
    else:
        lines.append(f'pipe = {name}.from_pretrained("{path.as_posix()}")')
    lines.append(f"image = {call}.images[0]")
    return "\n".join(lines)


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A temporary folder next to `target`, on the same file system, gone afterwards."""
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _settle(folder: Path) -> None:
    """Give all files below `folder` the usual permissions (safetensors writes them for their owner only), and sync."""
    mask = os.umask(0)
    os.umask(mask)
    for path in sorted(folder.rglob("*")):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
        _sync(path)


def _sync(path: Path) -> None:
    """Write a file or a folder through to the disk; where the system cannot open folders (Windows), do without."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
