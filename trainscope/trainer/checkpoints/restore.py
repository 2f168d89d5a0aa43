"""A checkpoint's state → a session that goes on exactly where the saved one stood.

Everything is matched by name, and tensors keep the format that they were saved in: torch's `load_state_dict` goes by
position and casts moments to the weights' format. What the checkpoint lacks stays as a fresh start has it, and is
told. Knows nothing of configurations or run directories.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from trainscope.errors import RunError
from trainscope.probes.continuity import Name
from trainscope.probes.fingerprint import Piece
from trainscope.probes.pending import Part
from trainscope.trainer.checkpoints.state import SavedState, group_value
from trainscope.trainer.optimizers.schedule import move_to
from trainscope.trainer.parallel import like
from trainscope.trainer.session import Accumulated, Session


@dataclass
class Restored:
    """What could not be put back (`missing`, in words), and which tensors another program had converted."""

    missing: list[str] = field(default_factory=list)
    read_as: dict[Name, str] = field(default_factory=dict)
    position: int = 0
    """Where the schedule goes on, by `scheduler.on_resume`."""
    lrs: list[float] = field(default_factory=list)
    """The learning rate of each group there."""


def check_shapes(session: Session, state: SavedState, weights: Mapping[str, Tensor], saved: Sequence[Piece]) -> None:
    """Raise `RunError` with everything that does not fit the session, before anything is changed."""
    problems = [f"{name}: is not in the file" for name in session.params if name not in weights]
    for name, param in session.params.items():
        if name in weights and weights[name].shape != param.shape:
            problems.append(f"{name}: is {list(weights[name].shape)}, and the model has {list(param.shape)}")
    shapes = {piece.name: piece.shape for piece in saved if piece.shape is not None}
    for name, values in (state.optimizer or {}).items():
        for key, value in values.items():
            wanted = shapes.get(("optimizer", name, key))
            if isinstance(value, Tensor) and wanted is not None and wanted != str(list(value.shape)):
                problems.append(f"{name}: {key} is {list(value.shape)}, and was saved as {wanted}")
    problems += _misfits("ema.safetensors", state.ema or {}, session)
    if state.training["accumulated"] and state.gradients is not None:
        problems += _misfits("gradients.safetensors", state.gradients, session)
        found = state.gradients
        lacking = [key for key in ("loss", "leftover") if key not in found or found[key].numel() != 1]
        problems += [f"gradients.safetensors: has no {key}" for key in lacking]
    problems += _unusable_random_states(session, state)
    if problems:
        raise RunError(
            f"{state.folder.parent} does not fit this training:\n  "
            + "\n  ".join(problems[:8])
            + (f"\n  … and {len(problems) - 8} more" if len(problems) > 8 else ""),
            hint="resume from another checkpoint, or start anew from its weights: lora.init_from, or model.base",
        )


def _misfits(file: str, tensors: Mapping[str, Tensor], session: Session) -> list[str]:
    return [
        f"{file}: {name} is {list(tensors[name].shape)}, and the model has {list(param.shape)}"
        for name, param in session.params.items()
        if name in tensors and tensors[name].shape != param.shape
    ]


def _unusable_random_states(session: Session, state: SavedState) -> list[str]:
    """A generator takes a state only as bytes of the right number."""
    own = {"torch": torch.get_rng_state()}
    if session.rounding is not None:
        own["rounding"] = session.rounding.generator.get_state()
    found = state.random or {}
    return [
        f"random.safetensors: {name} is no generator's state"
        for name, wanted in own.items()
        if name in found and (found[name].dtype != torch.uint8 or found[name].shape != wanted.shape)
    ]


@torch.no_grad()
def restore(session: Session, state: SavedState, weights: Mapping[str, Tensor], saved: Sequence[Piece]) -> Restored:
    """Put everything back that the checkpoint holds. `saved` is its fingerprint, which has the formats."""
    result = Restored()
    formats = {piece.name: piece.dtype for piece in saved if piece.dtype is not None}
    if state.weights is None:
        result.missing.append("the weights as they were trained (those saved for use are taken)")
    for name, param in session.params.items():
        _note_format(result, ("weights", name, "weight"), weights[name], formats)
        param.copy_(like(weights[name], param))
    _restore_optimizer(session, state, formats, result)
    training = state.training
    session.step, session.micro_step = training["step"], training["micro_step"]
    session.optimizer_steps = training["optimizer_steps"]
    position = training["optimizer_steps"] if state.scheduler is None else state.scheduler["position"]
    if state.scheduler is None:
        result.missing.append("the schedule's position (its steps done are taken for it)")
    result.position = 0 if session.config.scheduler.on_resume == "restart" else position
    result.lrs = move_to(session.scheduler, result.position)
    if session.scaler.is_enabled():
        if state.scaler is None:
            result.missing.append("the GradScaler's scale (it begins again at 65536)")
        else:
            session.scaler.load_state_dict(state.scaler)
    _restore_ema(session, state, formats, result)
    _restore_random(session, state, result)
    _restore_accumulated(session, state, result)
    return result


def _restore_optimizer(session: Session, state: SavedState, formats: Mapping[Name, str], result: Restored) -> None:
    if state.optimizer is None:
        result.missing.append("the optimizer's state (it begins afresh)")
        return
    wanted = _keys_by_param(formats)
    whole = {name: values for name, values in state.optimizer.items() if wanted.get(name, set()).issubset(values)}
    lacking = [name for name in session.params if name not in whole]
    stateless = {name for name in lacking if not any(known[:2] == ("optimizer", name) for known in formats)}
    if set(lacking) - stateless:
        result.missing.append(f"the optimizer's state of {len(set(lacking) - stateless)} tensors")
    for name, param in session.params.items():
        values: dict[str, Any] = {}
        for key, value in whole.get(name, {}).items():
            if isinstance(value, Tensor):
                piece = ("optimizer", name, key)
                _note_format(result, piece, value, formats)
                # Step counters stay on the host and in float32, as torch keeps them.
                dtype = formats.get(piece, "float32" if key == "step" else None)
                value = value.to(dtype=getattr(torch, dtype) if dtype else None)
                value = value if key == "step" else _placed(like(value.to(param.device), param), key, param, session)
            values[key] = value
        if values:
            session.optimizer.state[param] = values
    if state.groups is None:
        result.missing.append("the optimizer's groups (their counters begin afresh)")
        return
    for group, found in zip(session.optimizer.param_groups, state.groups, strict=False):
        configured = set(type(session.config.optimizer).model_fields) | {"lr", "initial_lr"}
        if session.config.scheduler.on_resume != "continue":
            configured.add("warmup_steps")  # Schedule-Free's, whose length follows from that of the run
        kept = {key: value for key, value in found.items() if key not in configured}
        group.update({key: group_value(value, session.device) for key, value in kept.items()})


def _keys_by_param(formats: Mapping[Name, str]) -> dict[str, set[str]]:
    """The tensors that the state of each parameter has to have: an optimizer does without all of them or none."""
    keys: dict[str, set[str]] = {}
    for item, param, key in formats:
        if item == "optimizer" and param is not None:
            keys.setdefault(param, set()).add(key)
    return keys


def _placed(value: Tensor, key: str, param: Tensor, session: Session) -> Tensor:
    """State in memory of its own; that of a paged optimizer where it gives way to the computer's memory.

    What was read lies in the mapped file at any address, and some libraries' sums depend on the address in their last
    bits (MKL's dot product, by which D-Adaptation and Prodigy estimate).
    """
    optimizer: Any = session.optimizer
    if not getattr(optimizer, "is_paged", False) or key not in ("state1", "state2"):
        return value.clone()
    place: Tensor = optimizer.get_state_buffer(param, dtype=value.dtype)
    return place.copy_(value)


def _restore_ema(session: Session, state: SavedState, formats: Mapping[Name, str], result: Restored) -> None:
    if session.ema is None:
        return
    if state.ema is None:
        if state.training["config"].get("ema.enabled"):
            result.missing.append("the average (EMA begins again at the weights as they are)")
        found: dict[str, Tensor] = {}
    else:
        found = state.ema
        session.ema.optimization_step = state.ema_updates or 0
    for (name, param), shadow in zip(session.params.items(), session.ema.shadow_params, strict=True):
        if name in found:
            _note_format(result, ("ema", name, "shadow"), found[name], formats)
        shadow.copy_(like(found.get(name, param), shadow))


def _restore_random(session: Session, state: SavedState, result: Restored) -> None:
    if state.random is None or "torch" not in state.random:
        result.missing.append("the random states")
        return
    suffix = f"-{session.processes.rank}" if session.processes.rank else ""
    torch.set_rng_state(state.random.get(f"torch{suffix}", state.random["torch"]))
    if session.device.type == "cuda" and f"cuda{suffix}" in state.random:
        torch.cuda.set_rng_state(state.random[f"cuda{suffix}"], session.device)
    if session.rounding is not None and "rounding" in state.random:
        session.rounding.generator.set_state(state.random["rounding"])


def _restore_accumulated(session: Session, state: SavedState, result: Restored) -> None:
    done = state.training["accumulated"]
    if not done:
        return
    if state.gradients is None:
        result.missing.append("the gradients of the step under way (it begins again with its first micro-batch)")
        session.micro_step -= done
        return
    for name, param in session.params.items():
        if name in state.gradients:
            # A copy, for the reason of `_placed`.
            param.grad = state.gradients[name].to(device=param.device, dtype=param.dtype, copy=True)
    loss, leftover = (state.gradients[key].to(session.device) for key in ("loss", "leftover"))
    if state.seen is None:
        result.missing.append("what the probes saw of the step under way")
    tables = state.seen["tables"] if state.seen else {}
    seen = {table: Part.from_json(part, session.device) for table, part in tables.items()}
    session.accumulated = Accumulated(done, loss, leftover, seen)


def _note_format(result: Restored, name: Name, tensor: Tensor, formats: Mapping[Name, str]) -> None:
    found = str(tensor.dtype).removeprefix("torch.")
    if name in formats and formats[name] != found:
        result.read_as[name] = found
