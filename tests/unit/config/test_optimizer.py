"""The optimizers' keys and the schedules' against each other: what cannot be asked for says why."""

from __future__ import annotations

import pytest

from trainscope.config.load import parse_config
from trainscope.config.optimizer import OPTIMIZERS, component_lr, explain_type
from trainscope.config.optimizers.shared import ByComponent, Estimated
from trainscope.errors import ConfigError

GOOD = '[model]\nbase = "tiny:sd15"\n[train]\nsteps = 10\n[data]\ndir = "images"\n'


def problems(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_config(GOOD, overrides=overrides)
    return caught.value.problems


# ---- names


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("AdamW", "adamw"),
        ("AdamW8bit", "adamw8bit"),
        ("PagedAdamW8bit", "paged-adamw8bit"),
        ("Lion8bit", "lion8bit"),
        ("PagedLion8bit", "paged-lion8bit"),
        ("SGDNesterov", "sgd-nesterov"),
        ("SGDNesterov8bit", "sgd-nesterov8bit"),
        ("DAdaptAdam", "dadapt-adam"),
        ("DAdaptAdamPreprint", "dadapt-adam-preprint"),
        ("DAdaptAdaGrad", "dadapt-adagrad"),
        ("DAdaptAdanIP", "dadapt-adan-ip"),
        ("AdaFactor", "adafactor"),
        ("Prodigy", "prodigy"),
        ("RAdamScheduleFree", "radam-schedulefree"),
        ("sgd_schedulefree", "sgd-schedulefree"),
    ],
)
def test_another_trainers_spelling(name: str, kind: str) -> None:
    (problem,) = problems(f"optimizer.type={name}")
    assert problem.startswith(f'optimizer.type = "{name}": allowed are adamw, adamw8bit, ')
    assert problem.endswith(f"; did you mean {kind}?")


@pytest.mark.parametrize("name", ["DAdaptation", "dadaptation", "D-Adaptation"])
def test_dadaptation_is_two_optimizers(name: str) -> None:
    (problem,) = problems(f"optimizer.type={name}")
    assert problem.endswith("; kohya's DAdaptation is dadapt-adam-preprint; its successor is dadapt-adam")


def test_every_type_is_found_by_its_own_name() -> None:
    for kind, model in OPTIMIZERS.items():
        assert parse_config(GOOD, overrides=[f"optimizer.type={kind}"]).config.optimizer == model(type=kind)  # type: ignore[call-arg]
        assert explain_type(kind.upper()) == f"did you mean {kind}?"


# ---- keys of other optimizers


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_every_foreign_key_is_told_whose_it_is(kind: str) -> None:
    foreign = {name for model in OPTIMIZERS.values() for name in model.model_fields} - OPTIMIZERS[
        kind
    ].model_fields.keys()
    assert foreign
    for name in foreign:
        (problem,) = problems(f"optimizer.type={kind}", f"optimizer.{name}=0.5")
        owners = [owner for owner, model in OPTIMIZERS.items() if name in model.model_fields]
        assert problem.startswith(f"optimizer.{name}: ")
        assert kind in problem
        assert owners[0] in problem or "one step size" in problem
        assert len(problem) < 160


def test_a_key_of_one_and_a_key_of_many() -> None:
    assert problems("optimizer.d_coef=2.0") == [
        "optimizer.d_coef: belongs to optimizer.type = prodigy, and this run's is adamw"
    ]
    assert problems("optimizer.no_prox=true") == [
        "optimizer.no_prox: belongs to optimizer.type = dadapt-adan or dadapt-adan-ip, and this run's is adamw"
    ]
    (many,) = problems("optimizer.d0=1e-5")
    assert "= dadapt-adam, dadapt-adam-preprint, dadapt-adagrad and 5 more, and this run's is adamw" in many
    (few,) = problems("optimizer.weight_lr_power=1.0")
    assert "= adamw-schedulefree, radam-schedulefree or sgd-schedulefree, and this" in few


# ---- learning rates


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("name", ["unet_lr", "text_encoder_lr"])
def test_a_rate_of_its_own_or_the_reason_why_not(kind: str, name: str) -> None:
    overrides = (f"optimizer.type={kind}", f"optimizer.{name}=0.5")
    if issubclass(OPTIMIZERS[kind], Estimated):
        (problem,) = problems(*overrides)
        assert problem.startswith(f"optimizer.{name}: {kind} estimates one step size for all trained weights, so")
        return
    section = parse_config(GOOD, overrides=overrides).config.optimizer
    assert isinstance(section, ByComponent)
    components = ("unet", "text_encoder", "text_encoder_2")
    own = ("unet",) if name == "unet_lr" else ("text_encoder", "text_encoder_2")
    assert [component_lr(section, component) for component in components] == [
        0.5 if component in own else section.lr for component in components
    ]


def test_a_rate_of_zero_is_a_rate() -> None:
    section = parse_config(GOOD, overrides=["optimizer.unet_lr=0"]).config.optimizer
    assert component_lr(section, "unet") == 0


# ---- combinations


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["scheduler.cycles=2", "scheduler.type=cosine"],
            'scheduler.cycles = 2 with scheduler.type = "cosine": only "cosine-with-restarts" has several falls',
        ),
        (
            ["scheduler.power=2", "scheduler.type=linear"],
            'scheduler.power = 2 with scheduler.type = "linear": only "polynomial" has an exponent',
        ),
        (
            ["scheduler.min_lr_ratio=0.1", "scheduler.type=constant-with-warmup", "scheduler.warmup=2"],
            'scheduler.min_lr_ratio = 0.1 with scheduler.type = "constant-with-warmup": it never falls; linear, ',
        ),
        (
            ["optimizer.type=radam-schedulefree", "scheduler.warmup=2"],
            "scheduler.warmup = 2: radam-schedulefree has a warmup of its own and takes none",
        ),
        (
            ["optimizer.type=dadapt-sgd", "scheduler.type=linear", "scheduler.warmup=2"],
            'scheduler.warmup = 2 with optimizer.type = "dadapt-sgd": it measures the gradient at the first step, ',
        ),
        (
            ["optimizer.type=dadapt-sgd", "precision.weights=fp16"],
            'optimizer.type = "dadapt-sgd" with precision.weights = "fp16": it divides by the square of its first ',
        ),
        (
            ["optimizer.type=adafactor", "optimizer.warmup_init=true"],
            "optimizer.warmup_init = true: it is about the rate of optimizer.relative_step = true",
        ),
        (
            ["optimizer.type=adafactor", "optimizer.relative_step=true", "optimizer.lr=1e-3"],
            "optimizer.lr with optimizer.relative_step = true: Adafactor then takes a rate of its own",
        ),
        (
            ["optimizer.type=adafactor", "optimizer.relative_step=true", "optimizer.text_encoder_lr=1e-3"],
            "optimizer.text_encoder_lr with optimizer.relative_step = true: Adafactor then takes a rate of its own",
        ),
        (
            ["optimizer.type=adafactor", "optimizer.relative_step=true", "scheduler.type=cosine"],
            'scheduler.type = "cosine" with optimizer.relative_step = true: Adafactor then moves its rate by itself; ',
        ),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, list) else "",
)
def test_impossible_combinations(overrides: list[str], expected: str) -> None:
    (problem,) = problems(*overrides)
    assert problem.startswith(expected)


@pytest.mark.parametrize(
    "overrides",
    [
        ["scheduler.cycles=3", "scheduler.type=cosine-with-restarts"],
        ["scheduler.power=0.5", "scheduler.type=polynomial", "scheduler.min_lr_ratio=0.2"],
        ["scheduler.min_lr_ratio=0.5", "scheduler.type=linear", "scheduler.warmup=500"],
        ["scheduler.warmup=2", "optimizer.type=sgd-schedulefree"],
        ["scheduler.warmup=2", "optimizer.type=adamw-schedulefree"],
        ["optimizer.type=dadapt-sgd", "scheduler.type=linear"],
        ["optimizer.type=adafactor", "optimizer.relative_step=true", "optimizer.warmup_init=true"],
        ["optimizer.type=adafactor", "scheduler.type=cosine", "optimizer.unet_lr=1e-3"],
    ],
    ids=",".join,
)
def test_possible_ones(overrides: list[str]) -> None:
    parse_config(GOOD, overrides=overrides)
