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
from trainscope.trainer.optimizers.schedule import Schedule
from trainscope.trainer.parallel import whole
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
    seen: dict[str, Any] | None
    """What the probes saw of the step under way, by table."""


def write_state(session: Session, checkpoint: Path, *, run_id: str, whole: bool) -> None:
    """Write `checkpoint`/state. Not `whole`: what identifies the moment, without the tensors."""
    folder = checkpoint / "state"
    folder.mkdir()
    _write_json(folder / "training.json", _training(session, run_id))
    if not whole:
        return
    metadata = {"ema": {"updates": str(session.ema.optimization_step)}} if session.ema is not None else {}
    for name, tensors in collect_tensors(session).items():
        _write_tensors(folder / f"{name}.safetensors", tensors, **metadata.get(name, {}))
    _write_json(folder / "optimizer.json", _optimizer_numbers(session))
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
    if session.accumulated is not None:
        seen = {table: part.as_json() for table, part in session.accumulated.seen.items()}
        _write_json(folder / "seen.json", {"tables": seen})


def collect_tensors(session: Session) -> dict[str, dict[str, Tensor]]:
    """The tensors of every file, sharded ones put together. All processes must call it."""
    files = {"trained": dict[str, Tensor](session.params), "optimizer": _optimizer_tensors(session)}
    if session.ema is not None:
        files["ema"] = dict(zip(session.params, session.ema.shadow_params, strict=True))
    if session.accumulated is not None:
        gradients = {name: param.grad for name, param in session.params.items() if param.grad is not None}
        files["gradients"] = {
            "loss": session.accumulated.loss,
            "leftover": session.accumulated.leftover,
            **gradients,
        }
    files = {
        file: {name: whole(tensor.detach()) for name, tensor in tensors.items()} for file, tensors in files.items()
    }
    for rank, states in enumerate(session.processes.gather(_random_states(session))):
        suffix = f"-{rank}" if rank else ""
        files.setdefault("random", {}).update({f"{name}{suffix}": state for name, state in states.items()})
    return files


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
        seen=_checked(folder / "seen.json", _are_parts),
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
        "processes": session.processes.count,
        "samples": session.data.identity(),
        "schedule": session.schedule.as_json(),
        "probes_every": session.probes_every,
        "config": {key: _finite(value) for key, value in flatten(config).items()},
    }


def _finite(value: Any) -> Any:
    return str(value) if value in (float("inf"), float("-inf")) else value


def _optimizer_tensors(session: Session) -> dict[str, Tensor]:
    """By parameter::key: parameters go by name, so no order is relied on."""
    return {
        f"{name}{SEPARATOR}{key}": value
        for name, param in session.params.items()
        for key, value in session.optimizer.state.get(param, {}).items()
        if isinstance(value, Tensor)
    }


def _optimizer_numbers(session: Session) -> dict[str, Any]:
    """What is no tensor, by parameter and key, and the groups."""
    numbers: dict[str, dict[str, Any]] = {}
    for name, param in session.params.items():
        for key, value in session.optimizer.state.get(param, {}).items():
            if not isinstance(value, Tensor):
                numbers.setdefault(name, {})[key] = value
    groups = [{key: value for key, value in group.items() if key != "params"} for group in _plain_groups(session)]
    return {"numbers": numbers, "groups": groups}


def _plain_groups(session: Session) -> list[dict[str, Any]]:
    return [{key: _plain_value(value) for key, value in group.items()} for group in session.optimizer.param_groups]


def _plain_value(value: Any) -> Any:
    """A group's value as JSON. A scalar tensor keeps its format: arithmetic with it is done in that format."""
    if isinstance(value, Tensor) and value.numel() == 1:
        return {"dtype": str(value.dtype).removeprefix("torch."), "value": value.item()}
    return value


def group_value(plain: Any, device: torch.device) -> Any:
    """What `_plain_value` was given; a list was a tuple."""
    if isinstance(plain, dict):
        return torch.tensor(plain["value"], dtype=getattr(torch, plain["dtype"]), device=device)
    return tuple(plain) if isinstance(plain, list) else plain


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
        and all(_is_scalar(value) for group in groups for value in group.values() if isinstance(value, dict))
    )


def _is_scalar(found: dict[str, Any]) -> bool:
    """Whether it is a scalar tensor as `_plain_value` writes it."""
    return (
        found.keys() == {"dtype", "value"}
        and found["dtype"] in ("float64", "float32", "bfloat16", "float16")
        and type(found["value"]) is float
    )


def _is_scheduler(found: dict[str, Any]) -> bool:
    return _is_schedule(found.get("schedule")) and _is_count(found.get("position"))


def _is_schedule(found: Any) -> bool:
    try:
        Schedule.from_json(found)
    except ValueError:
        return False
    return True


def _is_scaler(found: dict[str, Any]) -> bool:
    numbers = [found.get(key) for key in ("scale", "growth_factor", "backoff_factor")]
    counts = [found.get(key) for key in ("growth_interval", "_growth_tracker")]
    return all(isinstance(value, int | float) and value > 0 for value in numbers) and all(map(_is_count, counts))


def _are_parts(found: dict[str, Any]) -> bool:
    tables = found.get("tables")
    return isinstance(tables, dict) and all(
        isinstance(part, dict) and _is_part(part.get("keys"), part.get("values")) for part in tables.values()
    )


def _is_part(keys: Any, values: Any) -> bool:
    if not (isinstance(keys, dict) and isinstance(values, list)):
        return False
    columns = [*keys.values(), *values]
    return (
        all(isinstance(column, list) for column in columns)
        and len({len(column) for column in columns}) == 1
        and all(type(value) is float for column in values for value in column)
    )


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
