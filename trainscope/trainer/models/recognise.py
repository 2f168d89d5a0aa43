"""Which model a single-file checkpoint holds, by the names and shapes of its tensors: from its header, in no time.

Every tensor is compared with the list of the published ones, so that a file that is cut, merged with another kind or of
an unknown kind is refused before anything is loaded. Knows nothing of how its parts are built.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trainscope.errors import ModelError
from trainscope.trainer.models.architectures import CONV_IN, UNET, VAE, Architecture, Shapes, architectures

FOREIGN = (
    (r"(model\.diffusion_model\.)?joint_blocks\.", "Stable Diffusion 3"),
    (r"(model\.diffusion_model\.)?(double_blocks|single_blocks)\.", "Flux, or a relative of it"),
    (r"conditioner\.embedders\.0\.model\.", "the refiner of SDXL"),
    (r"control_model\.|controlnet_|input_hint_block\.", "a ControlNet"),
    (r"edm_mean$|edm_vpred\.", "Playground v2.5 or another model of EDM"),
    (r"(.*\.)?motion_modules\.", "AnimateDiff"),
    (r"clip_txt_mapper\.|down_blocks\.\d+\.\d+\.channelwise", "Stable Cascade"),
    (r"depth_model\.", "the depth model of Stable Diffusion 2"),
    (r"lora_(unet|te\d?)_|.*\.lora_(A|B|up|down)\.", "a LoRA"),
    (r"emb_params$|clip_[lg]$|string_to_param", "a textual inversion"),
    (r"(down_blocks|mid_block|time_embedding)\.", "one part of a diffusers folder"),
    (r"text_model\.", "a text encoder"),
    (r"(encoder|decoder|post_quant_conv)\.", "a VAE"),
)
"""What other files are known by: the beginning of a name."""

HINTS = {
    "a LoRA": "start from it with lora.init_from, and set model.base to the model that it was made for",
    "a VAE": "set model.vae to it, and model.base to a whole model",
    "one part of a diffusers folder": "set model.base to the folder that has model_index.json",
}

HARMLESS = re.compile(
    r"model_ema\.|first_stage_model\.(loss|model_ema)\.|embedding_manager\."
    r"|(alphas|betas|sqrt_|log_one_minus_|posterior_|lvlb_weights|logvar|denoiser\.sigmas|scale_factor$)"
    r"|(cond_stage_model|conditioner)\..*(position_ids|logit_scale|text_projection|text_projection\.weight|attn_mask)$"
    r"|(v_pred|ztsnr)$"
)
"""What files have besides and nobody needs: averages of the training, schedules, constants, marks."""

SHOWN = 3
INPUTS = {4: "text to image", 9: "inpainting"}


@dataclass(frozen=True)
class Header:
    """What a safetensors file says of itself. `location` is for messages."""

    shapes: Shapes
    metadata: Mapping[str, str]
    location: str


@dataclass(frozen=True)
class Recognised:
    """`prediction` and `zero_terminal_snr` are what the file's marks say, if they do."""

    architecture: Architecture
    inpainting: bool
    prediction: Literal["epsilon", "v_prediction"] | None
    zero_terminal_snr: bool


def read_header(path: Path) -> Header:
    """Names and shapes of a safetensors file. Raises `ModelError` when it is damaged or another kind of file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping
            return Header(shapes, file.metadata() or {}, str(path))
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path} is damaged, incomplete or no safetensors file: {str(error).splitlines()[0]}",
            hint="download or save the model again",
        ) from error


def recognise(header: Header, *, vae: bool = True) -> Recognised:
    """The published model that the file holds; without `vae` its VAE need not be there, nor be whole.

    Raises one `ModelError` with all that is missing, misshapen and unexpected, or with what the file seems to be.
    """
    shapes = header.shapes
    refuse_foreign(header)
    best = max(architectures().values(), key=lambda known: _agreement(_without_vae(known.tensors), shapes))
    wanted = _without_vae(best.tensors)
    if _agreement(wanted, shapes) < len(wanted) / 2:
        raise ModelError(
            f"{header.location} is no checkpoint of Stable Diffusion 1, 2 or XL: of {len(shapes)} tensors "
            f"{_agreement(wanted, shapes)} are those of {best.title}, which has {len(wanted)} beside its VAE",
            hint="models with other blocks (distilled, pruned) load from a diffusers folder",
        )
    channels = _input_channels(header)
    expected = dict(best.tensors)
    out, _, *kernel = expected[CONV_IN]
    expected[CONV_IN] = (out, channels, *kernel)
    found = dict(shapes)
    if not vae:
        expected, found = _without_vae(expected), _without_vae(found)
    elif _without_vae(found) == found:
        raise ModelError(f"{header.location}, a checkpoint of {best.title}, has no VAE in it", hint="set model.vae")
    check_tensors(expected, found, f"{header.location}, a checkpoint of {best.title},", optional=best.optional)
    return Recognised(
        architecture=best,
        inpainting=channels == 9,
        prediction=_marked_prediction(header),
        zero_terminal_snr="ztsnr" in shapes,
    )


def recognise_vae(header: Header) -> Literal["bare", "whole", "diffusers"]:
    """How the VAE in a file is named: as in a checkpoint, with or without first_stage_model., or as in diffusers.

    Raises `ModelError` for another file, and with what is missing or unexpected in the original naming.
    """
    shapes = header.shapes
    if any(name.startswith("encoder.down_blocks.") for name in shapes):
        return "diffusers"
    whole = any(name.startswith(VAE) for name in shapes)
    if not whole and "encoder.conv_in.weight" not in shapes:
        refuse_foreign(header)
        raise ModelError(f"{header.location} has no VAE in it", hint="use a VAE's file, or a checkpoint that has one")
    prefix = VAE if whole else ""
    found = {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
    found = {name: shape for name, shape in found.items() if not name.startswith(("loss.", "model_ema."))}
    published = [
        {name.removeprefix(VAE): shape for name, shape in known.tensors.items() if name.startswith(VAE)}
        for known in architectures().values()
    ]
    nearest = max(published, key=lambda tensors: _agreement(tensors, found))
    check_tensors(nearest, found, f"the VAE of {header.location}")
    return "whole" if whole else "bare"


def check_tensors(expected: Shapes, found: Shapes, subject: str, *, optional: Sequence[str] = ()) -> None:
    """Raise one `ModelError` unless `found` has the tensors of `expected`, and nothing else that matters."""
    missing = [name for name in expected if name not in found and not _dispensable(name, optional)]
    misshapen = [
        f"{name} is {_size(found[name])}, not {_size(shape)}"
        for name, shape in expected.items()
        if name in found and not same_shape(name, found[name], shape)
    ]
    unexpected = [name for name in found if name not in expected and not HARMLESS.match(name)]
    problems = [
        f"{len(names)} {what} ({', '.join(sorted(names)[:SHOWN])}{', …' if len(names) > SHOWN else ''})"
        for what, names in (("missing", missing), ("of another shape", misshapen), ("unexpected", unexpected))
        if names
    ]
    if problems:
        raise ModelError(
            f"{subject} does not have the published tensors: {'; '.join(problems)}",
            hint="download it again; a model with other blocks loads from a diffusers folder",
        )


def same_shape(name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Whether the shapes agree; the VAE's attention is of 1x1 convolutions, which some programs save as matrices."""
    if ".mid.attn_1." in name:
        found, expected = (shape[:2] if shape[2:] in ((), (1,), (1, 1)) else shape for shape in (found, expected))
    return found == expected


def refuse_foreign(header: Header) -> None:
    """Raise `ModelError` for a file that is known to be something else, with what it is."""
    whole = any(name.startswith(UNET) for name in header.shapes)
    for pattern, title in FOREIGN:
        begins = re.compile(pattern)
        if title in HINTS and whole:
            continue
        if any(begins.match(name) for name in header.shapes):
            raise ModelError(
                f"{header.location} is {title}; trainscope trains Stable Diffusion 1.x, 2.x and XL",
                hint=HINTS.get(title, "set model.base to one of those"),
            )


def _input_channels(header: Header) -> int:
    shape = header.shapes.get(CONV_IN, (0, 4))
    channels = shape[1] if len(shape) > 1 else 0
    if channels not in INPUTS:
        raise ModelError(
            f"the UNet of {header.location} takes {channels} input channels; "
            f"allowed are {' and '.join(f'{count} ({use})' for count, use in INPUTS.items())}",
            hint="depth, upscaling and instruction models are not supported",
        )
    return channels


def _without_vae(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """All tensors but the VAE's, which is the same for all kinds."""
    return {name: shape for name, shape in shapes.items() if not name.startswith(VAE)}


def _agreement(published: Shapes, found: Shapes) -> int:
    return sum(name in found and same_shape(name, found[name], shape) for name, shape in published.items())


def _dispensable(name: str, optional: Sequence[str]) -> bool:
    return name.endswith(("position_ids", "logit_scale")) or name.startswith(tuple(optional))


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a scalar"


def _marked_prediction(header: Header) -> Literal["epsilon", "v_prediction"] | None:
    """What the file says that its UNet predicts.

    A tensor named v_pred is the mark that ComfyUI knows; the metadata are those of Stability-AI's ModelSpec.
    """
    said = [header.metadata.get(f"modelspec.{key}", "") for key in ("prediction_type", "predict_key")]
    if "v_pred" in header.shapes or any(word in ("v", "v_prediction") for word in said):
        return "v_prediction"
    if any(word == "epsilon" for word in said):
        return "epsilon"
    architecture = header.metadata.get("modelspec.architecture", "")
    if architecture.startswith("stable-diffusion-v2-"):
        return "v_prediction" if architecture.startswith("stable-diffusion-v2-768-v") else "epsilon"
    return None
