"""Loads a model that is one `.safetensors` file in the published key layout, without network.

The configurations come with the package, the renaming of tensors is diffusers'. Only the tensors of one part are looked
at at a time, and the file is mapped, so that no second copy of the weights is held. Knows nothing of training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainscope.errors import ModelError
from trainscope.trainer.models.architectures import UNET, VAE, PublishedEncoder
from trainscope.trainer.models.parts import Dtypes, Parts, dtype_of, frozen
from trainscope.trainer.models.quiet import quiet_libraries
from trainscope.trainer.models.recognise import Recognised, read_header, recognise, recognise_vae
from trainscope.trainer.models.tokenizers import Reader, load_tokenizers

PICKLED = (".ckpt", ".pt", ".pth", ".bin")

GUESS = (
    "{location}: a file does not tell Stable Diffusion 2 at 768 px, which predicts v, from its base model, which "
    'predicts the noise; v is taken. If samples are noise, set model.prediction_type = "epsilon"'
)


def load_single_file(
    path: Path,
    *,
    vae: bool,
    tokenizer: Path | None,
    dtypes: Dtypes,
    prediction_type: str = "auto",
    warn: Callable[[str], None] = lambda message: None,
) -> Parts:
    """Load a checkpoint; without `vae` its own is left out, and the part is None.

    Raises `ModelError`: pickled, damaged, of another model, with missing or unexpected tensors, no tokenizer.
    """
    refuse_pickle(path)
    header = read_header(path)
    known = recognise(header, vae=vae)
    architecture = known.architecture
    readers = [Reader(encoder.pad_token, encoder.config["vocab_size"]) for encoder in architecture.text_encoders]
    tokenizers = load_tokenizers(readers, folder=tokenizer)
    prediction = _prediction(known, prediction_type, str(path), warn)
    variants = (["inpainting"] if known.inpainting else []) + ([prediction] if prediction else [])
    with quiet_libraries():
        from diffusers import DDPMScheduler

        settings = architecture.configured("scheduler", *variants)
        if prediction:
            settings["prediction_type"] = prediction
        if known.zero_terminal_snr:
            settings |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        return Parts(
            tokenizers=tokenizers,
            text_encoders=tuple(
                _text_encoder(path, encoder, dtype_of(name, dtypes))
                for name, encoder in zip(("text_encoder", "text_encoder_2"), architecture.text_encoders, strict=False)
            ),
            vae=_vae(path, _tensors(path, VAE), architecture.configured("vae"), dtype_of("vae", dtypes))
            if vae
            else None,
            unet=_unet(path, architecture.configured("unet", *variants), dtype_of("unet", dtypes)),
            noise_scheduler=DDPMScheduler(**settings),
            vae_config=architecture.configured("vae"),
        )


def load_vae_file(path: Path, config: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """Load the VAE of a file that holds nothing else, or of a whole checkpoint, with `config`.

    Three namings are published: the original one with or without first_stage_model., and that of diffusers.
    """
    layout = recognise_vae(read_header(path))
    with quiet_libraries():
        if layout == "diffusers":
            return _fill(_empty("AutoencoderKL", config), _tensors(path, ""), path, dtype)
        tensors = _tensors(path, VAE if layout == "whole" else "")
        return _vae(path, {VAE + name.removeprefix(VAE): tensor for name, tensor in tensors.items()}, config, dtype)


def refuse_pickle(path: Path) -> None:
    """Raise `ModelError` for a file that can only be unpickled."""
    if path.suffix.lower() in PICKLED:
        raise ModelError(
            f"{path} is a pickled checkpoint; trainscope does not load it, since unpickling runs code",
            hint="if you trust its author, convert it once: python -c "
            '"import torch; from safetensors.torch import save_file; '
            f"s = torch.load({str(path)!r}, map_location='cpu'); s = s.get('state_dict', s); "
            "save_file({k: v.contiguous() for k, v in s.items() if isinstance(v, torch.Tensor)}, "
            f'{str(path.with_suffix(".safetensors"))!r})"',
        )


def _prediction(known: Recognised, asked: str, location: str, warn: Callable[[str], None]) -> str | None:
    """What the UNet predicts where that is not the published default, or None."""
    if asked != "auto":
        return asked
    published = known.architecture.scheduler["prediction_type"]
    if known.prediction or published == "epsilon":
        return known.prediction
    if known.inpainting:  # Stable Diffusion 2's inpainting model was made from its base model
        return "epsilon"
    warn(GUESS.format(location=location))
    return None


def _tensors(path: Path, prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, mapped and not read."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys() if name.startswith(prefix)}  # noqa: SIM118


def _unet(path: Path, config: Mapping[str, Any], dtype: torch.dtype) -> Any:
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    converted = convert_ldm_unet_checkpoint(_tensors(path, UNET), config)
    return _fill(_empty("UNet2DConditionModel", config), converted, path, dtype)


def _vae(path: Path, tensors: dict[str, Tensor], config: Mapping[str, Any], dtype: torch.dtype) -> Any:
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    return _fill(_empty("AutoencoderKL", config), convert_ldm_vae_checkpoint(tensors, config), path, dtype)


def _text_encoder(path: Path, encoder: PublishedEncoder, dtype: torch.dtype) -> Any:
    import transformers
    from accelerate import init_empty_weights
    from diffusers.loaders.single_file_utils import convert_ldm_clip_checkpoint, convert_open_clip_checkpoint

    with init_empty_weights(include_buffers=False):
        model = getattr(transformers, encoder.model_class)(transformers.CLIPTextConfig(**encoder.config))
    tensors = _tensors(path, encoder.prefix)
    if encoder.layout == "clip":
        converted = convert_ldm_clip_checkpoint(tensors)
    else:
        converted = convert_open_clip_checkpoint(model, tensors, prefix=encoder.prefix)
    if not hasattr(model, "text_model"):  # flattened in transformers 5.6
        converted = {name.removeprefix("text_model."): tensor for name, tensor in converted.items()}
    return _fill(model, converted, path, dtype)


def _empty(name: str, config: Mapping[str, Any]) -> Any:
    """A model of diffusers without storage."""
    import diffusers
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        return getattr(diffusers, name).from_config(dict(config))


def _fill(model: Any, tensors: Mapping[str, Tensor], source: Path, dtype: torch.dtype) -> Any:
    """Give the model copies of `tensors` in `dtype`; what it has no place for (unused layers) is left out."""
    names = model.state_dict().keys()
    missing = sorted(names - tensors.keys())
    if missing:
        raise ModelError(
            f"{source} has no tensors for {len(missing)} places of {type(model).__name__}, the first is {missing[0]}",
            hint="this diffusers converts checkpoints in another way; install the version that trainscope asks for",
        )
    copies = {name: tensors[name].to(dtype, copy=True) for name in names}
    try:
        model.load_state_dict(copies, assign=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise ModelError(f"{source} does not fit {type(model).__name__}: {reason}") from error
    return frozen(model, dtype)
