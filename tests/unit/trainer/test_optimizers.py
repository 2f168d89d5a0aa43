"""Every optimizer is its library's, with a group and a rate for each component; what it does otherwise is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from trainscope.config.load import parse_config
from trainscope.config.optimizer import OPTIMIZERS, PAGED
from trainscope.config.optimizers.shared import ByComponent
from trainscope.proof.runs import RunSpec
from trainscope.runlog.reader import read_run
from trainscope.trainer.callbacks import Callback
from trainscope.trainer.optimizers.build import BUILDERS, build_optimizer, fallback
from trainscope.trainer.train import train

GOOD = '[model]\nbase = "tiny:sd15"\n[train]\nsteps = 10\n[data]\ndir = "images"\n'
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
CLASSES = {
    "adamw": "torch.optim.adamw.AdamW",
    "adamw8bit": "bitsandbytes.optim.adamw.AdamW8bit",
    "paged-adamw8bit": "bitsandbytes.optim.adamw.AdamW8bit",
    "lion": "lion_pytorch.lion_pytorch.Lion",
    "lion8bit": "bitsandbytes.optim.lion.Lion8bit",
    "paged-lion8bit": "bitsandbytes.optim.lion.Lion8bit",
    "sgd-nesterov": "torch.optim.sgd.SGD",
    "sgd-nesterov8bit": "bitsandbytes.optim.sgd.SGD8bit",
    "dadapt-adam": "dadaptation.dadapt_adam.DAdaptAdam",
    "dadapt-adam-preprint": "dadaptation.experimental.dadapt_adam_preprint.DAdaptAdamPreprint",
    "dadapt-adagrad": "dadaptation.dadapt_adagrad.DAdaptAdaGrad",
    "dadapt-adan": "dadaptation.dadapt_adan.DAdaptAdan",
    "dadapt-adan-ip": "dadaptation.experimental.dadapt_adan_ip.DAdaptAdanIP",
    "dadapt-lion": "dadaptation.dadapt_lion.DAdaptLion",
    "dadapt-sgd": "dadaptation.dadapt_sgd.DAdaptSGD",
    "adafactor": "transformers.optimization.Adafactor",
    "prodigy": "prodigyopt.prodigy.Prodigy",
    "adamw-schedulefree": "schedulefree.adamw_schedulefree.AdamWScheduleFree",
    "radam-schedulefree": "schedulefree.radam_schedulefree.RAdamScheduleFree",
    "sgd-schedulefree": "schedulefree.sgd_schedulefree.SGDScheduleFree",
}
"""On the CPU, where nothing is paged."""
COMPONENTS = ("unet", "text_encoder", "text_encoder_2")


def section(kind: str, **keys: Any) -> Any:
    overrides = [f"optimizer.type={kind}", *(f"optimizer.{key}={value}" for key, value in keys.items())]
    return parse_config(GOOD, overrides=overrides).config.optimizer


def made(wanted: Any) -> tuple[torch.optim.Optimizer, dict[str, list[torch.nn.Parameter]]]:
    params = {name: [torch.nn.Parameter(torch.ones(4, 3)) for _ in range(2)] for name in COMPONENTS}
    return build_optimizer(wanted, params, warmup_steps=0), params


def test_every_type_has_a_builder() -> None:
    assert BUILDERS.keys() == OPTIMIZERS.keys() == CLASSES.keys()


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_library_and_the_groups(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = section(kind)
    optimizer, params = made(wanted)
    assert f"{type(optimizer).__module__}.{type(optimizer).__qualname__}" == CLASSES[kind]
    assert [(group["name"], group["lr"]) for group in optimizer.param_groups] == [
        (name, wanted.lr) for name in COMPONENTS
    ]
    assert [group["params"] for group in optimizer.param_groups] == list(params.values())
    for name, value in wanted.model_dump(exclude={"type", "lr"}).items():
        for group in optimizer.param_groups:
            if name in group:
                assert group[name] == value, name
    assert capsys.readouterr().out == "", "libraries that print"


@pytest.mark.parametrize("kind", [kind for kind, model in OPTIMIZERS.items() if issubclass(model, ByComponent)])
def test_a_component_steps_at_its_own_rate(kind: str) -> None:
    """A rate of 0 is no step; the other components' steps are as they were."""
    small = {"min_8bit_size": 1} if kind.endswith("8bit") else {}
    plain = {"silent_sgd_phase": "false"} if kind.startswith("radam") else {}
    stepped = {}
    for keys in ({}, {"text_encoder_lr": 0}):
        optimizer, params = made(section(kind, **keys, **small, **plain))
        for tensors in params.values():
            for tensor in tensors:
                tensor.grad = torch.full_like(tensor, 0.5)
        optimizer.step()
        stepped[bool(keys)] = {name: tensors[0].detach() for name, tensors in params.items()}
    for name in COMPONENTS:
        assert not torch.equal(stepped[False][name], torch.ones(4, 3))
    assert torch.equal(stepped[True]["unet"], stepped[False]["unet"])
    for name in COMPONENTS[1:]:
        assert torch.equal(stepped[True][name], torch.ones(4, 3))


def test_adafactor_takes_a_rate_of_its_own() -> None:
    """It refuses one beside it; the schedule's is there all the same, and without effect."""
    stepped = []
    for rate in (1e-4, 1.0):
        optimizer, params = made(section("adafactor", relative_step="true"))
        for group in optimizer.param_groups:
            assert group["lr"] == 1e-4
            group["lr"] = rate
        for tensors in params.values():
            for tensor in tensors:
                tensor.grad = torch.full_like(tensor, 0.5)
        optimizer.step()
        stepped.append(params["unet"][0].detach())
    assert torch.equal(stepped[0], stepped[1])
    # The first step is 1e-2 in size: the update's root mean square is 1.
    assert torch.allclose(stepped[0], torch.full((4, 3), 0.99))


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_what_is_done_otherwise(kind: str) -> None:
    wanted = section(kind)
    on_cpu, on_cuda = fallback(wanted, CPU), fallback(wanted, CUDA)
    if isinstance(wanted, PAGED):
        plain = kind.removeprefix("paged-")
        assert on_cpu == f"{kind} pages its state out of a CUDA GPU's memory only; on cpu it is {plain}"
        assert on_cuda is None
    elif kind == "sgd-nesterov8bit":
        assert on_cpu == on_cuda
        assert on_cpu is not None
        assert "plain momentum" in on_cpu
    else:
        assert on_cpu is on_cuda is None


def test_nesterov_in_eight_bits_is_plain_momentum() -> None:
    """As its fallback says. If this fails, bitsandbytes has learned it, and the sentence has to go."""
    from bitsandbytes.optim import SGD8bit

    results = []
    for nesterov in (False, True):
        param = torch.nn.Parameter(torch.ones(64))
        optimizer = SGD8bit([param], lr=0.1, momentum=0.9, nesterov=nesterov)
        for _ in range(3):
            param.grad = torch.full_like(param, 0.5)
            optimizer.step()
        results.append(param.detach())
    assert torch.equal(*results)


def test_the_run_says_so(tmp_path: Path) -> None:
    class Heard(Callback):
        def __init__(self) -> None:
            self.messages: list[str] = []

        def on_event(self, kind: str, detail: dict[str, Any]) -> None:
            if kind == "fallback":
                self.messages.append(detail["message"])

    values = {"optimizer.type": "paged-lion8bit", "train.method": "lora", "train.steps": 1, "run.device": "cpu"}
    quiet = {"eval.every_steps": 0, "sample.every_steps": 0, "probes.tables": [], "checkpoint.save_state": False}
    train(RunSpec({**values, **quiet}).resolved(), out=tmp_path / "run", callbacks=[heard := Heard()])
    told = fallback(section("paged-lion8bit"), CPU)
    assert heard.messages == [told]
    rows = read_run(tmp_path / "run").datasets["events"].to_table().to_pylist()
    assert [json.loads(row["detail"]) for row in rows if row["kind"] == "fallback"] == [{"message": told}]
