"""What other trainers do with the average (EMA) when they evaluate, save and resume. Knows nothing of rules."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from trainscope.proof.injectors.kinds import AroundSaving, AtStart, Injectors
from trainscope.trainer.build import make_trainable
from trainscope.trainer.callbacks import Callback
from trainscope.trainer.models.load import load_components
from trainscope.trainer.models.lora import trained_parameters
from trainscope.trainer.session import Session


def _counter_lost(session: Session) -> None:
    """Only the shadow is saved and loaded, as a plain model, and not diffusers' `EMAModel.state_dict()`."""
    assert session.ema is not None  # noqa: S101
    session.ema.optimization_step = 0


def _made_anew(session: Session) -> None:
    """OneTrainer without its ema file: the average is a copy of the weights as they are, and the decay goes on."""
    _put_shadow(session, session.tensors)


@torch.no_grad()
def _of_the_base_model(session: Session) -> None:
    """An average made before the checkpoint was loaded, and not loaded itself: it holds the base model."""
    resolved = session.resolved
    components = load_components(**resolved.config.model.sources(), base_dir=resolved.base_dir)
    make_trainable(resolved, components, session.seed)
    base = trained_parameters(components.models)
    _put_shadow(session, [base[name] for name in session.params])


@torch.no_grad()
def _put_shadow(session: Session, values: Sequence[torch.Tensor]) -> None:
    assert session.ema is not None  # noqa: S101
    for shadow, value in zip(session.ema.shadow_params, values, strict=True):
        shadow.copy_(value)


class _SwappedInWhileSaving(Callback):
    """A validation context that puts the average in the model's place and is still open when a checkpoint is saved."""

    def __init__(self) -> None:
        self._raw: list[torch.Tensor] = []

    def before_save(self, session: Session) -> None:
        self._raw = [param.detach().clone() for param in session.tensors]
        if session.ema is not None:
            session.ema.copy_to(session.tensors)

    @torch.no_grad()
    def after_save(self, session: Session) -> None:
        for param, raw in zip(session.tensors, self._raw, strict=True):
            param.copy_(raw)


def _store_aliases(session: Session) -> None:
    """OneTrainer#823: what is put aside is `p.detach().cpu()`, which is no copy of weights that are on the CPU."""
    ema = session.ema
    if ema is None:
        return

    def store(parameters: Sequence[torch.Tensor]) -> None:
        ema.temp_stored_params = [param.detach().cpu() for param in parameters]

    vars(ema)["store"] = store


def _store_copies(session: Session) -> None:
    """Between its saves OneTrainer's weights are on the GPU, where `.cpu()` does copy."""
    if session.ema is not None:
        del vars(session.ema)["store"]


def _never_restored(session: Session) -> None:
    """`copy_to` for a look at the average, and no `restore` behind it."""
    if session.ema is not None:
        vars(session.ema)["restore"] = lambda parameters: None


INJECTORS: Injectors = {
    "average-counter-lost": lambda: AtStart(_counter_lost),
    "average-made-anew": lambda: AtStart(_made_anew),
    "average-of-the-base-model": lambda: AtStart(_of_the_base_model),
    "average-swapped-in-while-saving": _SwappedInWhileSaving,
    "average-left-by-saving": lambda: AroundSaving(_store_aliases, _store_copies),
    "average-never-restored": lambda: AtStart(_never_restored),
}
