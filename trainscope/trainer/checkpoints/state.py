"""The files of a checkpoint's state: written from a session, read and checked before a session is touched.

Tensors are in safetensors, numbers in JSON; nothing is ever unpickled. A file that is not there is None in what is
read, one that cannot be read is an error. Knows nothing of how the pieces are put back (`restore`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from trainscope.config.load import flatten
from trainscope.errors import RunError
from trainscope.trainer.optimizers.schedule import DIFFUSERS_NAME
from trainscope.trainer.session import Session

SEPARATOR = "::"
"""Between a parameter's name and the key of its state; module names have single dots only."""


@dataclass(frozen=True)
class SavedState:
    """What a checkpoint holds. `training` is always there."""

    folder: Path
    training: dict[str, Any]
    weights: dict[str, Tensor] | None
    optimizer: dict[str, dict[str, Any]] | None
    """State by parameter name and key."""
    groups: list[dict[str, Any]] | None
    scheduler: dict[str, Any] | None
    scaler: dict[str, Any] | None
    ema: dict[str, Tensor] | None
    ema_updates: int | None
    random: dict[str, Tensor] | None
    gradients: dict[str, Tensor] | None


def write_state(session: Session, checkpoint: Path, *, run_id: str, whole: bool) -> None:
    """Write `checkpoint`/state. Not `whole`: what identifies the moment, without the tensors."""
    folder = checkpoint / "state"
    folder.mkdir()
    _write_json(folder / "training.json", _training(session, run_id))
    if not whole:
        return
    _write_tensors(folder / "trained.safetensors", session.params)
    tensors, groups = _optimizer_parts(session)
    _write_tensors(folder / "optimizer.safetensors", tensors)
    _write_json(folder / "optimizer.json", groups)
    _write_json(
        folder / "scheduler.json",
        {
            "schedule": session.schedule.as_json(),
            "position": session.scheduler.last_epoch,
            "base_lrs": session.scheduler.base_lrs,
        },
    )
    if session.scaler.is_enabled():
        _write_json(folder / "scaler.json", session.scaler.state_dict())
    if session.ema is not None:
        shadows = dict(zip(session.params, session.ema.shadow_params, strict=True))
        _write_tensors(folder / "ema.safetensors", shadows, updates=str(session.ema.optimization_step))
    _write_tensors(folder / "random.safetensors", _random_states(session))
    if session.accumulated is not None:
        gradients = {name: param.grad for name, param in session.params.items() if param.grad is not None}
        carried = {"loss": session.accumulated.loss, "leftover": session.accumulated.leftover}
        _write_tensors(folder / "gradients.safetensors", {**carried, **gradients})


def read_state(checkpoint: Path) -> SavedState:
    """Read and check every file. Raises `RunError` for one that is damaged, or if there is no training.json."""
    folder = checkpoint / "state"
    training = _read_json(folder / "training.json")
    if training is None:
        raise RunError(
            f"{checkpoint} has no state/training.json, so nothing says where the training stood",
            hint="its weights can still be trained on from: lora.init_from, or model.base for a full fine-tune",
        )
    _check_training(training, folder / "training.json")
    numbers = _checked(folder / "optimizer.json", _are_numbers)
    ema, ema_updates = _read_ema(folder / "ema.safetensors")
    return SavedState(
        folder=folder,
        training=training,
        weights=_read_tensors(folder / "trained.safetensors"),
        optimizer=_optimizer_state(_read_tensors(folder / "optimizer.safetensors"), numbers, folder),
        groups=numbers["groups"] if numbers else None,
        scheduler=_checked(folder / "scheduler.json", _is_scheduler),
        scaler=_checked(folder / "scaler.json", _is_scaler),
        ema=ema,
        ema_updates=ema_updates,
        random=_read_tensors(folder / "random.safetensors"),
        gradients=_read_tensors(folder / "gradients.safetensors"),
    )


def _training(session: Session, run_id: str) -> dict[str, Any]:
    config = session.config.model_dump(mode="json")
    return {
        "run": run_id,
        "step": session.step,
        "micro_step": session.micro_step,
        "optimizer_steps": session.optimizer_steps,
        "accumulated": session.accumulated.count if session.accumulated else 0,
        "seed": session.seed,
        "samples": session.data.identity(),
        "schedule": session.schedule.as_json(),
        "probes_every": session.probes_every,
        "config": {key: _finite(value) for key, value in flatten(config).items()},
    }


def _finite(value: Any) -> Any:
    return str(value) if value in (float("inf"), float("-inf")) else value


def _optimizer_parts(session: Session) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by parameter::key, and the numbers with the groups. Parameters go by name, so no order is relied on."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for name, param in session.params.items():
        for key, value in session.optimizer.state.get(param, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{name}{SEPARATOR}{key}"] = value
            else:
                numbers.setdefault(name, {})[key] = value
    groups = [{key: value for key, value in group.items() if key != "params"} for group in _plain_groups(session)]
    return tensors, {"numbers": numbers, "groups": groups}


def _plain_groups(session: Session) -> list[dict[str, Any]]:
    return [
        {key: value.item() if isinstance(value, Tensor) and value.numel() == 1 else value for key, value in g.items()}
        for g in session.optimizer.param_groups
    ]


def _optimizer_state(
    tensors: dict[str, Tensor] | None, numbers: dict[str, Any] | None, folder: Path
) -> dict[str, dict[str, Any]] | None:
    if tensors is None:
        return None
    state: dict[str, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        param, separator, key = name.rpartition(SEPARATOR)
        if not separator:
            raise RunError(f"{folder / 'optimizer.safetensors'} is damaged: {name!r} is not parameter{SEPARATOR}key")
        state.setdefault(param, {})[key] = tensor
    for param, values in (numbers or {"numbers": {}})["numbers"].items():
        state.setdefault(param, {}).update(values)
    return state


def _random_states(session: Session) -> dict[str, Tensor]:
    states = {"torch": torch.get_rng_state()}
    if session.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(session.device)
    if session.rounding is not None:
        states["rounding"] = session.rounding.generator.get_state()
    return states


def _write_tensors(path: Path, tensors: Mapping[str, Tensor], **metadata: str) -> None:
    # Cloned where two names share one storage, which safetensors refuses.
    plain = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    seen: set[int] = set()
    for name, tensor in plain.items():
        if tensor.data_ptr() in seen:
            plain[name] = tensor.clone()
        seen.add(tensor.data_ptr())
    save_file(plain, path, metadata={"format": "pt", **metadata})


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")


def _read_tensors(path: Path) -> dict[str, Tensor] | None:
    return _read_ema(path)[0]


def _read_ema(path: Path) -> tuple[dict[str, Tensor] | None, int | None]:
    """The tensors of a file, and the `updates` of its header."""
    if not path.exists():
        return None, None
    try:
        with safe_open(path, framework="pt") as file:
            updates = (file.metadata() or {}).get("updates")
            return {name: file.get_tensor(name) for name in file.keys()}, int(updates) if updates else None  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, error) from error


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, error) from error
    if not isinstance(found, dict):
        raise _damaged(path, ValueError("it is not a JSON object"))
    return found


def _checked(path: Path, is_right: Callable[[dict[str, Any]], bool]) -> dict[str, Any] | None:
    found = _read_json(path)
    if found is not None and not is_right(found):
        raise _damaged(path, ValueError("keys are missing or their values of the wrong type"))
    return found


def _are_numbers(found: dict[str, Any]) -> bool:
    numbers, groups = found.get("numbers"), found.get("groups")
    return (
        isinstance(numbers, dict)
        and all(isinstance(values, dict) for values in numbers.values())
        and isinstance(groups, list)
        and bool(groups)
        and all(isinstance(group, dict) for group in groups)
    )


def _is_scheduler(found: dict[str, Any]) -> bool:
    return _is_schedule(found.get("schedule")) and _is_count(found.get("position"))


def _is_schedule(found: Any) -> bool:
    return (
        isinstance(found, dict)
        and found.get("type") in DIFFUSERS_NAME
        and _is_count(found.get("steps"))
        and _is_count(found.get("warmup_steps"))
    )


def _is_scaler(found: dict[str, Any]) -> bool:
    numbers = [found.get(key) for key in ("scale", "growth_factor", "backoff_factor")]
    counts = [found.get(key) for key in ("growth_interval", "_growth_tracker")]
    return all(isinstance(value, int | float) and value > 0 for value in numbers) and all(map(_is_count, counts))


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _check_training(training: dict[str, Any], path: Path) -> None:
    numbers = ("step", "micro_step", "optimizer_steps", "accumulated", "seed")
    wrong = [key for key in numbers if type(training.get(key)) is not int or training[key] < 0]
    wrong += [] if isinstance(training.get("config"), dict) else ["config"]
    wrong += [] if _is_schedule(training.get("schedule")) else ["schedule"]
    wrong += [key for key in ("run", "samples") if not isinstance(training.get(key), str)]
    if wrong:
        raise _damaged(path, ValueError(f"{', '.join(wrong)} is missing or of the wrong type"))


def _damaged(path: Path, error: Exception) -> RunError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return RunError(
        f"{path} is damaged: {reason}",
        hint="resume from an older checkpoint: --resume RUN/checkpoints/step-…",
    )
