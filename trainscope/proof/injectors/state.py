"""What other trainers do to weights and optimizer state when they resume. Knows nothing of rules."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from trainscope.proof.injectors.kinds import AtStart, Injectors
from trainscope.trainer.build import make_trainable
from trainscope.trainer.models.load import load_components
from trainscope.trainer.models.lora import trained_parameters
from trainscope.trainer.session import Session


def _fresh_optimizer(session: Session) -> None:
    """The weights are loaded and the optimizer is new.

    kohya's `--network_weights`; and OneTrainer where a group's name or the optimizer is not the backup's.
    """
    session.optimizer.state.clear()
    _estimate_lost(session)


def _estimate_lost(session: Session) -> None:
    """What is kept of each parameter is restored into groups that are new, and what Prodigy keeps in those is lost."""
    for group in session.optimizer.param_groups:
        if "d0" in group:
            group.update(d=group["d0"], d_max=group["d0"], d_numerator=0.0, k=0)
            group.pop("d_hat", None)
            group.pop("d_denom", None)


def _counters_at_zero(session: Session) -> None:
    """Moments are restored, and the step that belongs to them is not: it is no tensor of the parameter's shape."""
    for state in session.optimizer.state.values():
        if "step" in state:
            step = state["step"]
            state["step"] = torch.zeros_like(step) if isinstance(step, Tensor) else 0
    for group in session.optimizer.param_groups:
        if "k" in group:
            group["k"] = 0


def _moments_at_zero(session: Session) -> None:
    """State is allocated first and then filled where names match, and a wrapper's prefix lets none match."""
    for state in session.optimizer.state.values():
        for value in state.values():
            if isinstance(value, Tensor) and value.dim():
                value.zero_()


def _state_by_position(session: Session) -> None:
    """The model lists its parameters in another order than when its state was saved.

    torch's and accelerate's `load_state_dict` go by position, and shapes that happen to be equal pass.
    """
    state = session.optimizer.state
    alike: dict[torch.Size, list[torch.nn.Parameter]] = {}
    for param in session.tensors:
        if param in state:
            alike.setdefault(param.shape, []).append(param)
    for params in alike.values():
        found = [state[param] for param in params]
        state.update(zip(params, [*found[1:], found[0]], strict=True))


def _state_as(dtype: torch.dtype) -> Callable[[Session], None]:
    """The state is loaded while the model is in another format, which the model leaves again.

    torch's `load_state_dict` casts floating state, but `step`, to the format that the weights have at that moment.
    """

    def change(session: Session) -> None:
        for state in session.optimizer.state.values():
            for key, value in state.items():
                if isinstance(value, Tensor) and value.is_floating_point() and key != "step":
                    state[key] = value.to(dtype)

    return change


@torch.no_grad()
def _weights_through_bf16(session: Session) -> None:
    """`from_pretrained(torch_dtype=torch.bfloat16)` and `.float()` after it."""
    for param in session.tensors:
        param.copy_(param.bfloat16())


@torch.no_grad()
def _weights_of_the_base_model(session: Session) -> None:
    """The optimizer is restored, and the model keeps the weights that it was built with.

    Load hooks for accelerate, as in diffusers' examples and in kohya's trainers, take the models out of its hands; one
    that they do not know is left as it is.
    """
    resolved = session.resolved
    components = load_components(**resolved.config.model.sources(), base_dir=resolved.base_dir)
    make_trainable(resolved, components, session.seed)
    base = trained_parameters(components.models)
    for name, param in session.params.items():
        param.copy_(base[name])


INJECTORS: Injectors = {
    "fresh-optimizer": lambda: AtStart(_fresh_optimizer),
    "prodigy-groups-rebuilt": lambda: AtStart(_estimate_lost),
    "step-counters-at-zero": lambda: AtStart(_counters_at_zero),
    "moments-at-zero": lambda: AtStart(_moments_at_zero),
    "state-by-position": lambda: AtStart(_state_by_position),
    "state-in-bf16": lambda: AtStart(_state_as(torch.bfloat16)),
    "weights-through-bf16": lambda: AtStart(_weights_through_bf16),
    "weights-of-the-base-model": lambda: AtStart(_weights_of_the_base_model),
}
