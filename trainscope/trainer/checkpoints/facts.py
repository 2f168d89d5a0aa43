"""What a LoRA file says of the training that it is from: kohya's `ss_*` keys and Stability AI's `modelspec.*`.

Only what is true of this training is said; a key that does not apply is left out. Knows nothing of files' layouts.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from trainscope.lora.kohya import LAYERS, LAYERS_KEY
from trainscope.runlog.rundir import RunDir
from trainscope.trainer.ema import DTYPES
from trainscope.trainer.models.load import Components
from trainscope.trainer.session import Session

V2_WIDTH = 1024
"""Width of the text embeddings that the UNet of Stable Diffusion 2 attends to; 768 in version 1."""


def training_facts(session: Session) -> dict[str, str]:
    """The metadata of a LoRA at this moment of a training (keys: kohya-ss/sd-scripts, train_network.py)."""
    facts = dict([*_model(session), *_steps(session), *_rates(session), *_formats(session), *_data(session)])
    facts |= {**dict(_noise(session)), **_specification(session)}
    return {key: str(value) for key, value in facts.items() if value is not None}


def times(run: RunDir) -> dict[str, str]:
    """When the training began and when it was saved, in seconds since 1970, as kohya says it."""
    told = {"ss_training_finished_at": str(time.time())}
    for segment in run.read()["segments"][:1]:
        told["ss_training_started_at"] = str(datetime.fromisoformat(segment["started"]).timestamp())
    return told


def base_version(components: Components) -> str:
    """What kohya calls the kind of model."""
    if components.sdxl:
        return "sdxl_base_v1-0"
    second = components.unet.config.cross_attention_dim == V2_WIDTH or components.source.startswith("tiny:sd2")
    velocity = components.noise_scheduler.config.prediction_type == "v_prediction"
    return f"sd_v{2 if second else 1}{'_v' if velocity else ''}"


Facts = Iterator[tuple[str, Any]]


def _model(session: Session) -> Facts:
    config, version = session.config, base_version(session.components)
    yield "ss_output_name", config.run.name
    yield "ss_sd_model_name", Path(config.model.base).name
    yield "ss_vae_name", None if config.model.vae is None else Path(config.model.vae).name
    yield "ss_base_model_version", version
    yield "ss_v2", version.startswith("sd_v2")
    yield "ss_clip_skip", None if session.components.sdxl else config.model.clip_skip
    yield "ss_zero_terminal_snr", config.model.zero_terminal_snr
    layers = session.unet.config.layers_per_block
    yield LAYERS_KEY, None if layers == LAYERS else layers


def _steps(session: Session) -> Facts:
    train, plan = session.config.train, session.plan
    yield "ss_seed", session.seed
    yield "ss_steps", session.step
    yield "ss_max_train_steps", plan.steps
    yield "ss_epoch", math.ceil(session.micro_step / plan.batches_per_epoch)
    yield "ss_num_epochs", math.ceil(plan.epochs)
    yield "ss_num_batches_per_epoch", plan.batches_per_epoch
    yield "ss_batch_size_per_device", train.batch_size
    yield "ss_total_batch_size", train.batch_size * train.gradient_accumulation * session.processes.count
    yield "ss_gradient_accumulation_steps", train.gradient_accumulation
    yield "ss_gradient_checkpointing", train.gradient_checkpointing
    yield "ss_max_grad_norm", train.max_grad_norm
    yield "ss_loss_type", {"mse": "l2"}.get(train.loss, train.loss)


def _rates(session: Session) -> Facts:
    section, parts = session.config.optimizer, session.config.train.parts
    kind = type(session.optimizer)
    options = section.model_dump(exclude={"type", "lr", "unet_lr", "text_encoder_lr"}, exclude_none=True)
    told = ",".join(f"{key}={value}" for key, value in options.items())
    yield "ss_optimizer", f"{kind.__module__}.{kind.__qualname__}({told})"
    yield "ss_learning_rate", section.lr
    for part, key in (("unet", "unet_lr"), ("text_encoder", "text_encoder_lr")):
        own = getattr(section, key, None)
        yield f"ss_{key}", None if part not in parts else section.lr if own is None else own
    yield "ss_lr_scheduler", session.config.scheduler.type.replace("-", "_")
    yield "ss_lr_warmup_steps", session.plan.warmup_steps


def _formats(session: Session) -> Facts:
    compute = next(name for name, dtype in DTYPES.items() if dtype == session.compute_dtype)
    yield "ss_mixed_precision", "no" if compute == "fp32" else compute
    yield "ss_full_fp16", session.config.precision.weights == "fp16"
    yield "ss_full_bf16", session.config.precision.weights == "bf16"


def _data(session: Session) -> Facts:
    section, samples = session.config.data, [session.data.samples[index] for index in session.data.train]
    folder = session.resolved.resolve_path(section.dir).name
    tags = Counter(tag.strip() for sample in samples for tag in sample.caption.split(",") if tag.strip())
    yield "ss_num_train_images", len(samples) * section.repeats
    yield "ss_dataset_dirs", json.dumps({folder: {"n_repeats": section.repeats, "img_count": len(samples)}})
    yield "ss_tag_frequency", json.dumps({folder: dict(tags.most_common())}, ensure_ascii=False)
    yield "ss_resolution", f"({section.resolution}, {section.resolution})"
    yield "ss_enable_bucket", section.buckets.enabled
    if section.buckets.enabled:
        yield "ss_min_bucket_reso", section.buckets.min
        yield "ss_max_bucket_reso", section.buckets.max
    yield "ss_flip_aug", section.flip
    yield "ss_random_crop", section.random_crop
    yield "ss_shuffle_caption", section.shuffle_captions
    yield "ss_keep_tokens", section.keep_tokens
    yield "ss_caption_dropout_rate", section.caption_dropout
    yield "ss_max_token_length", section.max_tokens
    yield "ss_cache_latents", section.cache_latents != "off"


def _noise(session: Session) -> Facts:
    section = session.config.noise
    yield "ss_noise_offset", section.offset or None
    if section.multires_iterations:
        yield "ss_multires_noise_iterations", section.multires_iterations
        yield "ss_multires_noise_discount", section.multires_discount
    yield "ss_ip_noise_gamma", section.input_perturbation or None
    yield "ss_min_snr_gamma", section.min_snr_gamma
    yield "ss_debiased_estimation", section.debiased


def _specification(session: Session) -> dict[str, Any]:
    """https://github.com/Stability-AI/ModelSpec, with kohya's choice of words (library/sai_model_spec.py)."""
    components, resolution = session.components, session.config.data.resolution
    velocity = components.noise_scheduler.config.prediction_type == "v_prediction"
    if components.sdxl:
        architecture = "stable-diffusion-xl-v1-base"
    elif base_version(components).startswith("sd_v2"):
        architecture = "stable-diffusion-v2-768-v" if velocity else "stable-diffusion-v2-512"
    else:
        architecture = "stable-diffusion-v1"
    low, high = session.config.noise.min_timestep, session.config.noise.max_timestep
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.title": session.config.run.name,
        "modelspec.resolution": f"{resolution}x{resolution}",
        "modelspec.prediction_type": "v" if velocity else "epsilon",
        "modelspec.timestep_range": None if (low, high) == (0, 1000) else f"{low},{high}",
    }
