"""What a LoRA file says of its training is what was configured, loaded and counted."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.unit.trainer.conftest import SHAPES
from trainscope.lora.kohya import LAYERS_KEY
from trainscope.proof.runs import RunSpec
from trainscope.trainer.build import build_session
from trainscope.trainer.checkpoints.facts import training_facts
from trainscope.trainer.session import Session

SMALL: dict[str, Any] = {"data.dir": str(SHAPES), "data.resolution": 32, "train.method": "lora", "train.steps": 40}


def session(changes: dict[str, Any]) -> Session:
    return build_session(RunSpec({**SMALL, **changes}).resolved())


def test_what_is_said_of_a_training() -> None:
    changed = {
        "run.name": "mine", "train.parts": ["unet", "text_encoder"], "train.batch_size": 4, "optimizer.lr": 1e-3,
        "optimizer.text_encoder_lr": 1e-5, "scheduler.type": "cosine-with-restarts", "scheduler.warmup": 0.1,
        "precision.weights": "bf16", "model.clip_skip": 2, "noise.offset": 0.05, "noise.max_timestep": 900,
        "data.repeats": 3, "data.shuffle_captions": True,
    }  # fmt: skip
    found = session(changed)
    found.step, found.micro_step = 24, 24
    facts = training_facts(found)
    images = len(found.data.train)
    expected = {
        "ss_output_name": "mine", "ss_base_model_version": "sd_v1", "ss_v2": "False", "ss_clip_skip": "2",
        "ss_learning_rate": "0.001", "ss_unet_lr": "0.001", "ss_text_encoder_lr": "1e-05",
        "ss_lr_scheduler": "cosine_with_restarts", "ss_lr_warmup_steps": "4", "ss_mixed_precision": "bf16",
        "ss_full_bf16": "True", "ss_full_fp16": "False", "ss_noise_offset": "0.05", "ss_resolution": "(32, 32)",
        "ss_num_train_images": str(3 * images), "ss_max_train_steps": "40", "ss_steps": "24",
        "ss_epoch": str(-(-24 // found.plan.batches_per_epoch)), "ss_total_batch_size": "4", "ss_seed": str(found.seed),
        "ss_shuffle_caption": "True", "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.title": "mine", "modelspec.prediction_type": "epsilon", "modelspec.timestep_range": "0,900",
    }  # fmt: skip
    assert {key: facts.get(key) for key in expected} == expected
    assert facts["ss_optimizer"].startswith("torch.optim.adamw.AdamW(")
    [(folder, tags)] = json.loads(facts["ss_tag_frequency"]).items()
    assert folder == SHAPES.name
    assert sum(tags.values()) == images  # each caption is one tag
    assert not facts.keys() & {"ss_min_snr_gamma", "ss_multires_noise_iterations", "ss_vae_name"}


@pytest.mark.parametrize(
    ("base", "parts", "version", "architecture"),
    [
        ("tiny:sd2-v", ["unet"], "sd_v2_v", "stable-diffusion-v2-768-v/lora"),
        ("tiny:sdxl", ["text_encoder"], "sdxl_base_v1-0", "stable-diffusion-xl-v1-base/lora"),
    ],
)
def test_the_kind_of_model(base: str, parts: list[str], version: str, architecture: str) -> None:
    facts = training_facts(session({"model.base": base, "train.parts": parts}))
    assert (facts["ss_base_model_version"], facts["modelspec.architecture"]) == (version, architecture)
    assert ("ss_unet_lr" in facts) == ("unet" in parts)
    assert ("ss_text_encoder_lr" in facts) == ("text_encoder" in parts)
    assert facts[LAYERS_KEY] == "1"  # the tiny models' blocks have one resnet
