"""The keys of `[optimizer]`, type by type: two small tensors are stepped with and without them.

The gradient is that of a distance to a far target with noise on top: most steps go the same way, so that estimates of a
step size grow, and no two are alike, so that every average tells.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from tests.integration.every_key.watch import Own, Values, Watcher, same
from tests.leaves import leaves
from trainscope.config.load import parse_config
from trainscope.config.optimizer import OPTIMIZERS, PAGED
from trainscope.config.optimizers.shared import Estimated, ScheduleFree
from trainscope.proof.runs import config_text
from trainscope.trainer.optimizers import build_optimizer
from trainscope.trainer.optimizers.build import fallback

STEPS, WARMUP_STEPS = 12, 4
SHAPE = (64, 80)
"""More elements than bitsandbytes keeps in 32 bits."""


@dataclass(frozen=True)
class Stepped:
    """What an optimizer made of two tensors, one for each component, after every step."""

    optimizer: torch.optim.Optimizer
    course: dict[str, list[Tensor]]

    def distance(self, component: str = "unet") -> float:
        """From where the tensor began."""
        course = self.course[component]
        return float((course[-1] - course[0]).norm())

    def norm(self) -> float:
        return float(self.course["unet"][-1].norm())

    def state_formats(self) -> set[torch.dtype]:
        """Of what is kept for each element."""
        states = self.optimizer.state.values()
        return {
            kept.dtype
            for state in states
            for kept in state.values()
            if isinstance(kept, Tensor) and kept.shape == SHAPE
        }


def stepped(kind: str, keys: Values) -> Stepped:
    """Build the optimizer of a configuration and step it."""
    values = {
        "model.base": "tiny:sd15",
        "train.steps": 10,
        "data.dir": ".",
        "optimizer.type": kind,
        **{f"optimizer.{name}": value for name, value in keys.items()},
    }
    section = parse_config(config_text(values)).config.optimizer
    stream = torch.Generator().manual_seed(0)
    starts = {name: torch.randn(SHAPE, generator=stream) for name in ("unet", "text_encoder")}
    targets = {name: start + 3 * torch.randn(SHAPE, generator=stream) for name, start in starts.items()}
    params = {name: torch.nn.Parameter(start.clone()) for name, start in starts.items()}
    optimizer = build_optimizer(section, {name: [param] for name, param in params.items()}, warmup_steps=WARMUP_STEPS)
    course = {name: [start] for name, start in starts.items()}
    for _ in range(STEPS):
        for name, param in params.items():
            param.grad = 1e-2 * (param.detach() - targets[name]) + 1e-2 * torch.randn(SHAPE, generator=stream)
        optimizer.step()
        for name, param in params.items():
            course[name].append(param.detach().clone())
    return Stepped(optimizer, course)


@cache
def plain(kind: str, time: int) -> Stepped:
    """With every key at its default."""
    return stepped(kind, {})


@dataclass(frozen=True)
class Other:
    """Another value of a key; `beside` is set in both. `means` is given what came of the one and of the other."""

    value: Any
    means: Callable[[Stepped, Stepped], bool] = lambda one, other: True
    beside: Values = field(default_factory=dict)


def farther(one: Stepped, other: Stepped) -> bool:
    return other.distance() > one.distance()


def less_far(one: Stepped, other: Stepped) -> bool:
    return other.distance() < one.distance()


def begins_farther(one: Stepped, other: Stepped) -> bool:
    """With the first step; later ones depend on what was estimated from there."""
    (a, b), (c, d) = one.course["unet"][:2], other.course["unet"][:2]
    return float((d - c).norm()) > float((b - a).norm())


def decayed(one: Stepped, other: Stepped) -> bool:
    return other.norm() < one.norm()


def alone(component: str, untouched: str) -> Callable[[Stepped, Stepped], bool]:
    """One component goes farther, and the other just as far."""

    def means(one: Stepped, other: Stepped) -> bool:
        return other.distance(component) > one.distance(component) and same(
            one.course[untouched], other.course[untouched]
        )

    return means


DECAYING: Values = {"weight_decay": 0.5}
FAR: Values = {"d0": 1e-3}
"""From where a step is felt at once."""
RELATIVE: Values = {"relative_step": True}
OTHERS: Mapping[str, Other] = {
    "unet_lr": Other(0.1, alone("unet", "text_encoder")),
    "text_encoder_lr": Other(0.1, alone("text_encoder", "unet")),
    "lr": Other(0.1, farther),
    "weight_decay": Other(0.5, decayed),
    "betas": Other([0.5, 0.9]),
    "momentum": Other(0.5),
    "eps": Other(1.0, less_far),
    "min_8bit_size": Other(
        10**6, lambda one, other: one.state_formats() == {torch.uint8} and other.state_formats() == {torch.float32}
    ),
    "d0": Other(1e-3, begins_farther),
    "growth_rate": Other(1.02, less_far),
    "beta3": Other(0.5),
    "decouple": Other(False, beside={**DECAYING, **FAR}),
    "use_bias_correction": Other(True),
    "safeguard_warmup": Other(True, beside={"lr": 0.5}),
    "d_coef": Other(2.0, farther),
    "slice_p": Other(7),
    "no_prox": Other(True, beside={**DECAYING, **FAR}),
    "clip_threshold": Other(0.1, less_far),
    "decay_rate": Other(-0.3),
    "beta1": Other(0.9),
    "scale_parameter": Other(True),
    "relative_step": Other(True, farther),
    "warmup_init": Other(True, less_far, beside=RELATIVE),
    "r": Other(2.0),
    "weight_lr_power": Other(0.0),
    "silent_sgd_phase": Other(False, farther),
}
"""By the key's name."""
OWN: Mapping[tuple[str, str], Other] = {
    ("adafactor", "eps"): Other([1e-3, 1e-3], less_far),
    ("dadapt-adan", "betas"): Other([0.5, 0.5, 0.5]),
    ("dadapt-adan-ip", "betas"): Other([0.5, 0.5, 0.5]),
}
"""By type and name, where a type needs something else."""


def other_of(kind: str, name: str) -> Other:
    if (kind, name) in OWN:
        return OWN[(kind, name)]
    if issubclass(OPTIMIZERS[kind], Estimated) and name == "lr":
        return Other(0.5, less_far)
    if issubclass(OPTIMIZERS[kind], Estimated) and name in ("weight_decay", "eps"):
        return Other(OTHERS[name].value, beside=FAR)  # it moves the estimate too, which may go either way
    return OTHERS[name]


def case_of_key(kind: str, name: str, watcher: Watcher) -> None:
    """The key's other value takes the weights elsewhere."""
    other = other_of(kind, name)
    one, again = (stepped(kind, other.beside) if other.beside else plain(kind, time) for time in (1, 2))
    changed = stepped(kind, {**other.beside, name: other.value})
    assert same(one.course, again.course)
    assert not same(one.course, changed.course), f"{name} = {other.value!r} changed nothing"
    assert other.means(one, changed), (one.distance(), changed.distance(), one.norm(), changed.norm())


def case_of_type(kind: str, watcher: Watcher) -> None:
    """It is the library's class that the type's description names, and steps as no other type does."""
    model = OPTIMIZERS[kind]
    module, _, name = (model.__doc__ or "").split()[0].rstrip(".:").rpartition(".")
    if issubclass(model, PAGED) and not torch.cuda.is_available():
        section = model()
        assert "pages its state out of a CUDA GPU's memory only" in (fallback(section, torch.device("cpu")) or "")
        assert same(plain(kind, 1).course, plain(kind.removeprefix("paged-"), 1).course)
        return
    found = type(plain(kind, 1).optimizer)
    assert (found.__name__, found.__module__.split(".")[0]) == (name, module.split(".")[0])
    assert issubclass(model, ScheduleFree) == hasattr(plain(kind, 1).optimizer, "train")
    assert plain(kind, 1).distance() > 0
    rest = [other for other in OPTIMIZERS if other != kind and not other.startswith("paged-")]
    assert not any(same(plain(kind, 1).course, plain(other, 1).course) for other in rest)


def _case(name: str) -> Own:
    _, kind, key = name.split(".")
    return partial(case_of_type, kind) if key == "type" else partial(case_of_key, kind, key)


CASES: dict[str, Own] = {name: _case(name) for name, leaf in leaves().items() if leaf.optimizer is not None}
