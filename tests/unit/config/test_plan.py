"""What follows from a configuration by arithmetic."""

from __future__ import annotations

import pytest
import torch
from diffusers.training_utils import EMAModel

from trainscope.config.load import parse_config
from trainscope.config.plan import ema_decay, ema_initial_weight, plan_run

BASE = '[model]\nbase = "tiny:sd15"\n[train]\nsteps = 100\n[data]\ndir = "images"\n'


def test_steps_from_epochs() -> None:
    config = parse_config(BASE.replace("steps = 100", "epochs = 3\nbatch_size = 4\ngradient_accumulation = 2")).config
    plan = plan_run(config, 26)  # 7 batches an epoch, 21 in all, 2 for a step
    assert (plan.batches_per_epoch, plan.steps) == (7, 11)
    assert plan.epochs == pytest.approx(22 / 7)


def test_repeats_and_buckets_change_the_number_of_batches() -> None:
    asked = ["data.repeats=3", "train.batch_size=4"]
    config = parse_config(BASE.replace("steps = 100", "epochs = 2"), overrides=asked).config
    plan = plan_run(config, 10)  # 30 visits an epoch
    assert (plan.batches_per_epoch, plan.steps, plan.epochs, plan.seen_per_sample) == (8, 16, 2, 6)
    plan = plan_run(config, 10, buckets=[1, 2, 7])  # 3, 6 and 21 visits
    assert (plan.batches_per_epoch, plan.steps, plan.epochs, plan.seen_per_sample) == (1 + 2 + 6, 18, 2, 6)
    plan = plan_run(config, 10, buckets=[1, 2, 7], processes=2)
    assert plan.batches_per_epoch == 1 + 1 + 3


@pytest.mark.parametrize(("warmup", "steps"), [(0.1, 10), (25, 25), (250, 250)])
def test_warmup_is_a_share_or_a_number_of_steps(warmup: float, steps: int) -> None:
    config = parse_config(BASE, overrides=["scheduler.type=constant-with-warmup", f"scheduler.warmup={warmup}"]).config
    assert plan_run(config, 10).warmup_steps == steps


@pytest.mark.parametrize("warmup", [True, False])
@pytest.mark.parametrize("decay", [0.9, 0.9999])
def test_ema_decay_is_what_the_library_does(decay: float, warmup: bool) -> None:
    """And what is left of the first copy is the product of the decays: measured by averaging ones after a zero."""
    param = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    ema = EMAModel([param], decay=decay, min_decay=0.0 if warmup else decay)
    for update in range(1, 41):
        ema.step([param])
        assert ema.cur_decay_value == pytest.approx(ema_decay(update, decay=decay, warmup=warmup))
        param.data.fill_(1.0)  # the first update copied the zero; all later ones average ones
    config = parse_config(
        BASE.replace("steps = 100", "steps = 40"),
        overrides=["ema.enabled=true", f"ema.decay={decay}", f"ema.warmup={str(warmup).lower()}"],
    ).config
    assert plan_run(config, 10).ema_initial_weight == pytest.approx(1 - ema.shadow_params[0].item(), rel=1e-9)


@pytest.mark.parametrize("decay", [0.05, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("warmup", [True, False])
@pytest.mark.parametrize("updates", [0, 1, 2, 3, 81, 82, 1000, 20_000])
def test_what_is_left_of_the_first_copy_is_the_product_of_the_decays(decay: float, warmup: bool, updates: int) -> None:
    product = 1.0
    for update in range(2, updates + 1):
        product *= ema_decay(update, decay=decay, warmup=warmup)
    changes = ["ema.enabled=true", f"ema.decay={decay}", f"ema.warmup={str(warmup).lower()}"]
    config = parse_config(BASE, overrides=changes).config
    assert ema_initial_weight(updates, config) == pytest.approx(product, rel=1e-9, abs=1e-300)


def test_a_plan_of_very_many_steps_takes_no_time() -> None:
    """Nothing in it goes through the steps one by one: these would take hours."""
    changes = ["train.steps=1_000_000_000_000", "ema.enabled=true", "ema.decay=0.99999999", "checkpoint.every_steps=7"]
    plan = plan_run(parse_config(BASE, overrides=[*changes, "checkpoint.every_epochs=0"]).config, 10)
    assert plan.checkpoints == 999_999_999_999 // 7 + 1
    assert plan.ema_initial_weight == 0


@pytest.mark.parametrize(("keep", "checkpoints"), [(0, 5), (1, 2), (4, 5), (9, 5)])
def test_checkpoints_that_lie_there_at_once(keep: int, checkpoints: int) -> None:
    """Saved after 20, 40, 60, 80 and 100 steps; an old one goes when the new one is there."""
    config = parse_config(BASE, overrides=["checkpoint.every_steps=20", f"checkpoint.keep={keep}"]).config
    assert plan_run(config, 10).checkpoints == checkpoints
