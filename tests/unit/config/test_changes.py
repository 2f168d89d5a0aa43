"""Every key of a configuration is either applied at a resume or refused with both values, a reason and a way."""

from __future__ import annotations

import math
from typing import Any

import pytest

from trainscope.config.changes import Change, find_changes, outgrown, refusals
from trainscope.config.load import all_keys, flatten, parse_config
from trainscope.config.model import RunConfig
from trainscope.config.optimizer import OPTIMIZERS

BASE = '[model]\nbase = "tiny:sd15"\n[train]\nsteps = 10\n[data]\ndir = "images"\n[run]\nseed = 3\n'
WEIGHTS = "/runs/it/checkpoints/step-00000004/weights"

REFUSED = {
    "run.seed",
    "model.base",
    "model.vae",
    "model.prediction_type",
    "model.zero_terminal_snr",
    "model.clip_skip",
    "train.method",
    "train.parts",
    "train.batch_size",
    "lora.rank",
    "lora.alpha",
    "lora.targets",
    "lora.text_encoder_targets",
    "lora.conv_rank",
    "lora.conv_alpha",
    "lora.init_from",
    "scheduler.type",
    "scheduler.warmup",
    "scheduler.cycles",
    "scheduler.power",
    "scheduler.min_lr_ratio",
    "precision.weights",
    "precision.stochastic_rounding",
}
"""Of the keys that are no optimizer's."""
APPLIED_TO_OPTIMIZERS = {"optimizer.lr", "optimizer.weight_decay", "optimizer.eps", "optimizer.d_coef"}
APPLIED_TO_OPTIMIZERS |= {"optimizer.growth_rate", "optimizer.unet_lr", "optimizer.text_encoder_lr"}


def configured(*overrides: str) -> RunConfig:
    return parse_config(BASE, overrides=overrides).config


def saved(*overrides: str) -> dict[str, Any]:
    """What a checkpoint of that configuration holds of it: JSON, which has no infinity."""
    values = flatten(configured(*overrides).model_dump(mode="json"))
    return {key: "inf" if value == math.inf else value for key, value in values.items()}


def refused(*overrides: str, before: tuple[str, ...] = ()) -> list[str]:
    config = configured(*overrides)
    return refusals(find_changes(saved(*before), config), config, weights=WEIGHTS)


def test_nothing_changed() -> None:
    for kind in OPTIMIZERS:
        assert find_changes(saved(f"optimizer.type={kind}"), configured(f"optimizer.type={kind}")) == []


def test_a_change() -> None:
    (change,) = find_changes(saved(), configured("optimizer.lr=0.5"))
    assert change == Change("optimizer.lr", 1e-4, 0.5)


def test_lists_are_compared_by_what_is_in_them() -> None:
    same = ("optimizer.betas=[0.9, 0.999]", 'lora.targets=["to_q", "to_k", "to_v", "to_out.0"]')
    assert find_changes(saved(), configured(*same)) == []
    (change,) = find_changes(saved(), configured("optimizer.betas=[0.9, 0.99]"))
    assert change == Change("optimizer.betas", [0.9, 0.999], [0.9, 0.99])


def test_infinity_is_equal_to_itself() -> None:
    prodigy = ("optimizer.type=prodigy",)
    assert find_changes(saved(*prodigy), configured(*prodigy, "optimizer.growth_rate=inf")) == []
    (change,) = find_changes(saved(*prodigy), configured(*prodigy, "optimizer.growth_rate=1.5"))
    assert change == Change("optimizer.growth_rate", "inf", 1.5)


@pytest.mark.parametrize(
    "override",
    ["run.seed=-1", 'checkpoint.resume="latest"', "audit.thresholds.PREC001.share=0.5"],
)
def test_what_asks_for_nothing(override: str) -> None:
    assert find_changes(saved(), configured(override)) == []


def test_a_threshold_that_was_saved_asks_for_nothing() -> None:
    assert find_changes(saved("audit.thresholds.PREC001.share=0.5"), configured()) == []


# ---- applied or refused


@pytest.mark.parametrize(
    "key", sorted({*all_keys()} | {f"optimizer.{n}" for m in OPTIMIZERS.values() for n in m.model_fields})
)
def test_every_key_is_applied_or_refused(key: str) -> None:
    config = configured()
    found = refusals([Change(key, 11, 22)], config, weights=WEIGHTS)
    is_applied = key in APPLIED_TO_OPTIMIZERS if key.startswith("optimizer.") else key not in REFUSED
    if is_applied:
        assert found == []
        return
    (problem,) = found
    assert problem.startswith(f"{key} = 22: was 11: ")
    told, _, way = problem.removeprefix(f"{key} = 22: was 11: ").partition("; ")
    assert told, "the reason"
    assert way, "the way to do it"
    assert any(word in way for word in ("lora.init_from", "model.base", "leave it at", "scheduler.on_resume"))


def test_the_refused_keys_exist() -> None:
    assert {*all_keys()} >= REFUSED | APPLIED_TO_OPTIMIZERS


@pytest.mark.parametrize(
    ("override", "says"),
    [
        (
            "run.seed=4",
            "run.seed = 4: was 3: noise and the order of the samples are drawn from it; leave it at 3, or -1",
        ),
        ("lora.rank=8", "lora.rank = 8: was 16: the saved adapters have another shape; resize the LoRA"),
        ('model.base="other"', 'model.base = "other": was "tiny:sd15": the trained weights are changes of that model'),
        ('lora.init_from="a"', 'lora.init_from = "a": was not set: a training starts from weights only once'),
        ('optimizer.type="lion"', 'optimizer.type = "lion": was "adamw": another optimizer has another state'),
        ('lora.targets=["to_q"]', "lora.targets = ['to_q']: was ['to_q', 'to_k', 'to_v', 'to_out.0']: "),
    ],
)
def test_sentences(override: str, says: str) -> None:
    (problem,) = refused(override)
    assert problem.startswith(says), problem


def test_weights_are_named() -> None:
    (lora,) = refused("train.batch_size=2")
    assert lora.endswith(f'start a new run from the weights, with lora.init_from = "{WEIGHTS}"')
    (full,) = refused("train.method=finetune", "train.batch_size=2", before=("train.method=finetune",))
    assert full.endswith(f'start a new run from the weights, with model.base = "{WEIGHTS}"')


@pytest.mark.parametrize(("key", "asked"), [("rank", "8"), ("alpha", "8.0")])
def test_a_lora_can_be_resized(key: str, asked: str) -> None:
    (problem,) = refused(f"lora.{key}=8")
    assert f"trainscope lora resize {WEIGHTS} OUT" in problem
    assert f"--{key} {asked}" in problem


def test_another_optimizer_is_refused_once() -> None:
    """Its keys are others, and say nothing more."""
    (problem,) = refused("optimizer.type=prodigy", "optimizer.d0=1e-5", "optimizer.lr=1.0")
    assert problem.startswith("optimizer.type")


def test_all_at_once_in_the_order_of_the_configuration() -> None:
    found = refused("lora.rank=8", "run.seed=4", "scheduler.type=cosine", "optimizer.lr=1.0", "ema.enabled=true")
    assert [problem.partition(" ")[0] for problem in found] == ["run.seed", "lora.rank", "scheduler.type"]


@pytest.mark.parametrize("choice", ["restart", "extend"])
@pytest.mark.parametrize("override", ["scheduler.type=cosine", "scheduler.type=constant-with-warmup"])
def test_another_schedule_where_it_does_not_continue(choice: str, override: str) -> None:
    assert refused(override, "scheduler.warmup=2", f"scheduler.on_resume={choice}") == []
    assert len(refused(override, "scheduler.warmup=2")) == 2


@pytest.mark.parametrize("override", ["lora.rank=8", "lora.alpha=8", 'lora.targets=["to_q"]'])
def test_a_lora_that_is_not_there_can_be_anything(override: str) -> None:
    """A full fine-tune has no adapters, and the section is without effect."""
    assert refused("train.method=finetune", override, before=("train.method=finetune",)) == []


# ---- schedules that end


@pytest.mark.parametrize(
    ("kind", "saved_steps", "steps", "choice", "fits"),
    [
        ("cosine", 10, 10, "continue", True),
        ("cosine", 10, 8, "continue", True),
        ("cosine", 10, 11, "continue", False),
        ("cosine", 10, 11, "restart", True),
        ("cosine", 10, 11, "extend", True),
        ("constant", 10, 11, "continue", True),
        ("constant-with-warmup", 10, 11, "continue", True),
    ],
)
def test_a_training_that_outgrows_its_schedule(
    kind: str, saved_steps: int, steps: int, choice: str, fits: bool
) -> None:
    problem = outgrown(kind, saved_steps, steps, configured(f"scheduler.on_resume={choice}"))
    if fits:
        assert problem is None
    else:
        assert problem is not None
        assert problem.startswith(
            "train.steps: the saved cosine schedule ends at step 10, and the training would go on to 11"
        )
        assert '"restart"' in problem
        assert '"extend"' in problem
