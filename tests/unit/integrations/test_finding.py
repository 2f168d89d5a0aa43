"""What is found out about somebody else's training: its models, names, pairs, averages and keys."""

from __future__ import annotations

import importlib
from typing import get_args

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn, get_swa_multi_avg_fn

from trainscope.config.optimizer import Optimizer
from trainscope.integrations.averages import Average
from trainscope.integrations.found import look_around
from trainscope.integrations.lora import find_pairs
from trainscope.integrations.observed import TYPES, optimizer_type
from trainscope.integrations.parameters import by_component, requested, trained


class UNetThing(nn.Linear):
    pass


class CLIPTextThing(nn.Linear):
    pass


def test_tensors_are_named_component_first() -> None:
    models = by_component([UNetThing(2, 2), CLIPTextThing(2, 2), CLIPTextThing(2, 2), nn.Sequential(nn.Linear(2, 2))])
    assert list(models) == ["unet", "text_encoder", "text_encoder_2", "model"]
    optimizer = torch.optim.AdamW([*models["unet"].parameters(), nn.Parameter(torch.ones(3))])
    models["text_encoder"].requires_grad_(False)
    names = requested(models, optimizer)
    assert [name for name in names if not name.startswith(("text_encoder_2", "model"))] == [
        "unet.weight",
        "unet.bias",
        "optimizer.group0.2",
    ]
    assert list(trained(names, optimizer)) == ["unet.weight", "unet.bias", "optimizer.group0.2"]


def test_wrappers_leave_no_trace_in_names() -> None:
    model = nn.Linear(2, 2)
    assert by_component(nn.DataParallel(model)) == {"model": model}
    assert by_component(torch.compile(model)) == {"model": model}


def test_the_outermost_models_of_an_optimizer_are_found() -> None:
    class Holder(nn.Module):
        def __init__(self, part: nn.Module) -> None:
            super().__init__()
            self.part = part

    trunk, other = nn.Sequential(nn.Linear(2, 2)), nn.Linear(2, 2)
    holder = Holder(trunk)
    optimizer = torch.optim.AdamW([*trunk.parameters(), *other.parameters()])
    first = torch.optim.lr_scheduler.ConstantLR(optimizer)
    second = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    both = torch.optim.lr_scheduler.SequentialLR(optimizer, [first, second], milestones=[2])
    average = AveragedModel(holder)
    found = look_around(optimizer)
    assert {id(model) for model in found.models} == {id(holder), id(other)}
    assert found.scheduler is both
    assert any(one is average for one in found.averages)


def test_models_that_the_optimizer_does_not_hold_are_found_by_their_gradients() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model(torch.ones(1, 2)).sum().backward()
    found = look_around(torch.optim.AdamW([nn.Parameter(torch.ones(2))]))
    assert any(one is model for one in found.models)


def test_pairs_of_pefts_layers() -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2)), LoraConfig(r=3, lora_alpha=6, target_modules=["0"])
    )
    [pair] = find_pairs({"unet": model})
    assert (pair.rank, pair.alpha, pair.scale) == (3, 6.0, 2.0)
    assert pair.module == "unet.base_model.model.0"
    assert (tuple(pair.a.shape), tuple(pair.b.shape), tuple(pair.base_weight.shape)) == ((3, 4), (6, 3), (6, 4))
    with model.disable_adapter():
        assert pair.scale == 0.0


@pytest.mark.parametrize(
    ("options", "decays"),
    [
        ({"multi_avg_fn": get_ema_multi_avg_fn(0.9)}, [0.0, 0.9, 0.9]),
        ({"avg_fn": get_ema_avg_fn(0.8)}, [0.0, 0.8, 0.8]),
        ({"multi_avg_fn": get_swa_multi_avg_fn()}, [0.0, 1 / 2, 2 / 3]),
        ({}, [0.0, 1 / 2, 2 / 3]),
    ],
)
def test_the_decay_of_torchs_averages_is_what_they_did(options: dict, decays: list[float]) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 3)
    keeper = AveragedModel(model, **options)
    average = Average.of(keeper)
    for decay in decays:
        nn.init.normal_(model.weight)
        before = average.shadows()[0].detach().double().clone()
        average.given(model)
        keeper.update_parameters(model)
        assert average.decay() == pytest.approx(decay)
        expected = decay * before + (1 - decay) * model.weight.detach().double()
        assert torch.allclose(average.shadows()[0].double(), expected, atol=1e-6)


def test_known_optimizers_are_classes_that_there_are_and_types_of_the_configuration() -> None:
    union = get_args(Optimizer)[0]
    known = {member.model_fields["type"].default for member in get_args(union)}
    for path, name in TYPES.items():
        module, _, cls = path.rpartition(".")
        assert issubclass(getattr(importlib.import_module(module), cls), torch.optim.Optimizer)
        assert name in known
    params = [nn.Parameter(torch.ones(2))]
    assert optimizer_type(torch.optim.SGD(params, momentum=0.9, nesterov=True)) == "sgd-nesterov"
    assert optimizer_type(torch.optim.SGD(params)) == "sgd"
    assert optimizer_type(torch.optim.Adagrad(params)) == "adagrad"
