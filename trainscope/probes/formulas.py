"""Which formula recomputes an optimizer's update, in float32 from the state before the step: the Δ of `delivered`.

The formulas are in `updates`. Knows nothing of which elements are sampled or what becomes of the result.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from trainscope.probes.stored import Stored
from trainscope.probes.updates import estimating, schedulefree, usual
from trainscope.probes.updates.elements import Formula


@dataclass(frozen=True)
class StepFormula:
    """A formula, and where the optimizer keeps what it reads: "m" and "v" are the first and the second moment."""

    formula: Formula
    state: Mapping[str, Stored]


_ADAM = {"m": Stored("exp_avg"), "v": Stored("exp_avg_sq")}
_ADAM_8BIT = {
    "m": Stored("state1", qmap="qmap1", absmax="absmax1"),
    "v": Stored("state2", qmap="qmap2", absmax="absmax2"),
}
_MOMENTUM_8BIT = {"m": _ADAM_8BIT["m"]}
_ADAN = {"m": Stored("exp_avg"), "c": Stored("exp_avg_diff"), "v": Stored("exp_avg_sq"), "pre": Stored("pre_grad")}
# The library's names for the two are swapped, throughout.
_ADAN_IP = {**_ADAN, "c": Stored("exp_avg_sq"), "v": Stored("exp_avg_diff")}
_SCHEDULE_FREE = {"v": Stored("exp_avg_sq"), "z": Stored("z", starts_as_parameter=True)}

FORMULAS: dict[str, StepFormula] = {
    "torch.optim.adamw.AdamW": StepFormula(usual.adamw, _ADAM),
    "torch.optim.sgd.SGD": StepFormula(usual.sgd, {"m": Stored("momentum_buffer")}),
    "bitsandbytes.optim.adamw.AdamW8bit": StepFormula(usual.adamw, _ADAM_8BIT),
    "bitsandbytes.optim.adamw.PagedAdamW8bit": StepFormula(usual.adamw, _ADAM_8BIT),
    "bitsandbytes.optim.lion.Lion8bit": StepFormula(usual.lion, _MOMENTUM_8BIT),
    "bitsandbytes.optim.lion.PagedLion8bit": StepFormula(usual.lion, _MOMENTUM_8BIT),
    "bitsandbytes.optim.sgd.SGD8bit": StepFormula(usual.sgd_8bit, _MOMENTUM_8BIT),
    "lion_pytorch.lion_pytorch.Lion": StepFormula(usual.lion, {"m": Stored("exp_avg")}),
    "prodigyopt.prodigy.Prodigy": StepFormula(estimating.prodigy, _ADAM),
    "dadaptation.dadapt_adam.DAdaptAdam": StepFormula(estimating.dadapt_adam, _ADAM),
    "dadaptation.experimental.dadapt_adam_preprint.DAdaptAdamPreprint": StepFormula(estimating.dadapt_adam, _ADAM),
    "dadaptation.dadapt_adan.DAdaptAdan": StepFormula(estimating.dadapt_adan, _ADAN),
    "dadaptation.experimental.dadapt_adan_ip.DAdaptAdanIP": StepFormula(estimating.dadapt_adan, _ADAN_IP),
    "dadaptation.dadapt_lion.DAdaptLion": StepFormula(estimating.dadapt_lion, {"m": Stored("exp_avg")}),
    "dadaptation.dadapt_adagrad.DAdaptAdaGrad": StepFormula(
        estimating.dadapt_adagrad,
        {
            "sum": Stored("sk"),
            "squares": Stored("alphak", starts_at=1e-6),
            "first": Stored("x0", starts_as_parameter=True),
        },
    ),
    "dadaptation.dadapt_sgd.DAdaptSGD": StepFormula(
        estimating.dadapt_sgd, {"sum": Stored("s"), "first": Stored("x0", starts_as_parameter=True)}
    ),
    "schedulefree.adamw_schedulefree.AdamWScheduleFree": StepFormula(schedulefree.schedule_free_adamw, _SCHEDULE_FREE),
    "schedulefree.radam_schedulefree.RAdamScheduleFree": StepFormula(schedulefree.schedule_free_radam, _SCHEDULE_FREE),
    "schedulefree.sgd_schedulefree.SGDScheduleFree": StepFormula(
        schedulefree.schedule_free_sgd, {"z": _SCHEDULE_FREE["z"]}
    ),
}
"""By the optimizer's class, so that no optimizer's library has to be there to be known."""

VARIANTS = ("amsgrad", "maximize", "decoupled_wd", "dampening")
"""Switches, of a group or of the optimizer, that make the update another one than the formula's."""

USUAL = {"m": (Stored("exp_avg"), Stored("momentum_buffer")), "v": (Stored("exp_avg_sq"),)}
"""Where optimizers without a formula keep their moments, if they do."""


def formula_of(optimizer: torch.optim.Optimizer) -> StepFormula | None:
    """The formula of an optimizer, or of a class whose step it has inherited; None where there is none.

    A class that derives from a known one and steps in its own way is not known.
    """
    for switch in VARIANTS:
        if getattr(optimizer, switch, False) or any(group.get(switch) for group in optimizer.param_groups):
            return None
    kind = type(optimizer)
    known = next(
        (cls for cls in kind.__mro__ if issubclass(cls, torch.optim.Optimizer) and _name(cls) in FORMULAS), None
    )
    # torch wraps the `step` of every class that is used: what is compared lies below the wrappers.
    if known is None or inspect.unwrap(kind.step) is not inspect.unwrap(known.step):
        return None
    return FORMULAS[_name(known)]


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def places_of(optimizer: torch.optim.Optimizer, moment: str) -> tuple[Stored, ...]:
    """Where to look for the moment "m" or "v"; nowhere if the optimizer is known to keep none."""
    formula = formula_of(optimizer)
    if formula is None:
        return USUAL[moment]
    return (formula.state[moment],) if moment in formula.state else ()
