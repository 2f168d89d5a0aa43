"""The `[optimizer]` section: one model for each type, so that a key of another optimizer is an error.

Knows nothing of the classes that do the optimizing.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from trainscope.config.optimizers.estimating import (
    DAdaptAdaGrad,
    DAdaptAdam,
    DAdaptAdamPreprint,
    DAdaptAdan,
    DAdaptAdanIP,
    DAdaptLion,
    DAdaptSGD,
    Prodigy,
)
from trainscope.config.optimizers.schedulefree import AdamWScheduleFree, RAdamScheduleFree, SGDScheduleFree
from trainscope.config.optimizers.shared import ByComponent, Estimated, OptimizerSection
from trainscope.config.optimizers.usual import (
    Adafactor,
    AdamW,
    AdamW8bit,
    Lion,
    Lion8bit,
    PagedAdamW8bit,
    PagedLion8bit,
    SGDNesterov,
    SGDNesterov8bit,
)

__all__ = [
    "OPTIMIZERS",
    "PAGED",
    "SCHEDULE_FREE",
    "WARMED_UP",
    "Adafactor",
    "AdamW",
    "AdamW8bit",
    "AdamWScheduleFree",
    "DAdaptAdaGrad",
    "DAdaptAdam",
    "DAdaptAdamPreprint",
    "DAdaptAdan",
    "DAdaptAdanIP",
    "DAdaptLion",
    "DAdaptSGD",
    "Lion",
    "Lion8bit",
    "Optimizer",
    "PagedAdamW8bit",
    "PagedLion8bit",
    "Prodigy",
    "RAdamScheduleFree",
    "SGDNesterov",
    "SGDNesterov8bit",
    "SGDScheduleFree",
    "component_lr",
    "explain_foreign_key",
    "explain_type",
]

Optimizer = Annotated[
    AdamW
    | AdamW8bit
    | PagedAdamW8bit
    | Lion
    | Lion8bit
    | PagedLion8bit
    | SGDNesterov
    | SGDNesterov8bit
    | DAdaptAdam
    | DAdaptAdamPreprint
    | DAdaptAdaGrad
    | DAdaptAdan
    | DAdaptAdanIP
    | DAdaptLion
    | DAdaptSGD
    | Adafactor
    | Prodigy
    | AdamWScheduleFree
    | RAdamScheduleFree
    | SGDScheduleFree,
    Field(discriminator="type"),
]

OPTIMIZERS: dict[str, type[OptimizerSection]] = {
    "adamw": AdamW,
    "adamw8bit": AdamW8bit,
    "paged-adamw8bit": PagedAdamW8bit,
    "lion": Lion,
    "lion8bit": Lion8bit,
    "paged-lion8bit": PagedLion8bit,
    "sgd-nesterov": SGDNesterov,
    "sgd-nesterov8bit": SGDNesterov8bit,
    "dadapt-adam": DAdaptAdam,
    "dadapt-adam-preprint": DAdaptAdamPreprint,
    "dadapt-adagrad": DAdaptAdaGrad,
    "dadapt-adan": DAdaptAdan,
    "dadapt-adan-ip": DAdaptAdanIP,
    "dadapt-lion": DAdaptLion,
    "dadapt-sgd": DAdaptSGD,
    "adafactor": Adafactor,
    "prodigy": Prodigy,
    "adamw-schedulefree": AdamWScheduleFree,
    "radam-schedulefree": RAdamScheduleFree,
    "sgd-schedulefree": SGDScheduleFree,
}
SCHEDULE_FREE = (AdamWScheduleFree, RAdamScheduleFree, SGDScheduleFree)
"""Optimizers that step at y, and whose weights for use are at x."""
WARMED_UP = (AdamWScheduleFree, SGDScheduleFree)
"""Those of them that are told of `scheduler.warmup` and do it themselves."""
PAGED = (PagedAdamW8bit, PagedLion8bit)
"""Optimizers whose state gives way to the computer's memory."""


def component_lr(section: OptimizerSection, component: str) -> float:
    """The learning rate of a component: unet, text_encoder, text_encoder_2."""
    if not isinstance(section, ByComponent):
        return section.lr
    own = section.unet_lr if component == "unet" else section.text_encoder_lr
    return section.lr if own is None else own


def explain_type(found: object) -> str | None:
    """What a name of another trainer stands for here; None for one that is not known."""
    plain = _plain(found)
    if plain == "dadaptation":
        return "kohya's DAdaptation is dadapt-adam-preprint; its successor is dadapt-adam"
    kind = next((kind for kind in OPTIMIZERS if _plain(kind) == plain), None)
    return f"did you mean {kind}?" if kind else None


def explain_foreign_key(name: str, kind: str) -> str | None:
    """Whose key it is that the optimizer `kind` does not have, and why; None for one that no optimizer has."""
    owners = [owner for owner, model in OPTIMIZERS.items() if name in model.model_fields]
    if not owners:
        return None
    if name in ByComponent.model_fields and issubclass(OPTIMIZERS.get(kind, OptimizerSection), Estimated):
        return f"{kind} estimates one step size for all trained weights, so they have one rate, optimizer.lr"
    if len(owners) > _NAMED:
        told = f"{', '.join(owners[: _NAMED - 1])} and {len(owners) - _NAMED + 1} more"
    else:
        told = " or ".join([", ".join(owners[:-1]), owners[-1]]) if len(owners) > 1 else owners[0]
    return f"belongs to optimizer.type = {told}, and this run's is {kind}"


_NAMED = 4
"""So many owners of a key are told by name."""


def _plain(name: object) -> str:
    return "".join(letter for letter in str(name).lower() if letter.isalnum())
