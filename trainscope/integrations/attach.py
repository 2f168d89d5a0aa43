"""`trainscope.attach`: watch any PyTorch training from a line beside its optimizer.

Finds out what there is to be seen, and hands it to `Watch`; knows nothing of a step.
"""

from __future__ import annotations

import atexit
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from trainscope.errors import ConfigError
from trainscope.integrations.averages import Average
from trainscope.integrations.directory import WatchedRun
from trainscope.integrations.found import held_by_others
from trainscope.integrations.hooks import wrapped_call
from trainscope.integrations.lora import LayerPair, find_pairs
from trainscope.integrations.observed import observed_keys
from trainscope.integrations.parameters import by_component, plain_optimizer, requested, spread, trained
from trainscope.integrations.watch import Watch
from trainscope.recording.cadence import Cadence
from trainscope.recording.description import Keys

TABLES = ("tensors", "ema", "adapters")
Models = nn.Module | Iterable[nn.Module] | Mapping[str, nn.Module]


def attach(
    model: Models,
    optimizer: Any,
    ema: Any = None,
    scheduler: Any = None,
    *,
    out: str | Path | None = None,
    name: str = "attached",
    every: Literal["auto"] | int = "auto",
    budget: float = 0.02,
    tables: Sequence[str] = TABLES,
    memory_mb: int = 1024,
    scaler: Any = None,
    start_step: int = 0,
    config: Mapping[str, Any] | None = None,
    origin: str = "attach",
) -> Watch:
    """Record a training into a run directory that `trainscope audit` takes. Call it before the first step.

    `model` is a module, several, or a mapping from component names (unet, text_encoder …) to modules. `ema` is
    diffusers' `EMAModel` or torch's `AveragedModel`, and `scaler` the loop's `GradScaler`. `out` is the run directory
    to make, else it is `runs/<name>-<time>`; several processes need the same `out`. `every`, `budget`, `tables` and
    `memory_mb` are those of `[probes]`. `config` holds what is known of the training as keys of cfg.toml, as in
    `{"train.steps": 1000}`. `start_step` is where a resumed training goes on.

    The training is bit for bit what it is without. Raises `ConfigError` for arguments that cannot be, `RunError` if the
    directory cannot be made, `TrainingError` for an average that cannot be read.
    """
    scaler = scaler or getattr(optimizer, "scaler", None)  # Accelerate's optimizer has one
    optimizer = plain_optimizer(optimizer)
    _check(every, budget, tables, memory_mb)
    models = by_component(model)
    tensors = requested(models, optimizer, held_by_others(optimizer))
    looked_at = trained(tensors, optimizer)
    pairs = find_pairs(models)
    average = None if ema is None else Average.of(ema)
    averaged = None if average is None else _averaged(average, models, looked_at)
    keys: Keys = [
        *((key, value, "given") for key, value in _probe_keys(every, budget, tables, memory_mb).items()),
        *_known(observed_keys(optimizer, looked_at, pairs, average, scaler), config or {}),
    ]
    reason = spread(models, tensors.values())
    run = WatchedRun(Path(out) if out is not None else None, name, start_step=start_step)
    try:
        run.describe(keys, next(iter(looked_at.values())).device, origin=origin, facts=_facts(models, keys))
        watch = Watch(
            run,
            optimizer,
            Cadence(every, budget, last_step={key: value for key, value, _ in keys}.get("train.steps")),
            unrecorded=_unrecorded(tables, reason, pairs),
            spread=reason,
            start_step=start_step,
        )
    except BaseException:
        run.finish("crashed", start_step)
        raise
    atexit.register(watch.close)
    watch.on_close(lambda: atexit.unregister(watch.close))
    watch.begin(models, tensors, looked_at, pairs, scheduler, memory_bytes=memory_mb * 2**20)
    if average is not None and averaged is not None:
        watch_average(watch, average, averaged)
    if scaler is not None:
        watch.watch_scaler(scaler)
    return watch


def watch_average(watch: Watch, average: Average, averaged: Mapping[str, Tensor]) -> None:
    """See the updates of an average."""
    watch.add_average(average, averaged)

    def update(original: Any, *args: Any, **kwargs: Any) -> Any:
        return watch.around_average(average, original, args, kwargs)

    watch.on_close(wrapped_call(average.keeper, average.method, update))


def averaged_tensors(
    average: Average, models: Mapping[str, nn.Module], looked_at: Mapping[str, Tensor]
) -> dict[str, Tensor] | None:
    """Those of the looked-at tensors that an average is of, judged by the shapes of its shadows; None if of none."""
    everything: list[list[Tensor]] = [list(model.parameters()) for model in models.values()]
    candidates: list[list[Tensor]] = [
        *everything,
        [param for params in everything for param in params],
        *([param for param in params if param.requires_grad] for params in everything),
        list(looked_at.values()),
    ]
    sources = average.sources(candidates)
    held = {id(source) for source in sources or ()}
    return {name: tensor for name, tensor in looked_at.items() if id(tensor) in held} or None


def _averaged(average: Average, models: Mapping[str, nn.Module], looked_at: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = averaged_tensors(average, models, looked_at)
    if found is None:
        raise ConfigError(
            "ema: its shadows are not those of the model's parameters, in number or shape",
            hint="make the average of model.parameters(), after adapters were added",
        )
    return found


def _check(every: Any, budget: float, tables: Sequence[str], memory_mb: int) -> None:
    problems = []
    if every != "auto" and (isinstance(every, bool) or not isinstance(every, int) or every < 1):
        problems.append(f'every: expected "auto" or a number of steps, found {every!r}')
    if not 0 < budget <= 1:
        problems.append(f"budget: expected a share above 0 and up to 1, found {budget!r}")
    if memory_mb < 1:
        problems.append(f"memory_mb: expected at least 1, found {memory_mb!r}")
    problems += [f"tables: {table} is none of {', '.join(TABLES)}" for table in tables if table not in TABLES]
    if problems:
        raise ConfigError("attach cannot do that:", problems=problems)


def _probe_keys(every: Any, budget: float, tables: Sequence[str], memory_mb: int) -> dict[str, Any]:
    found = {"every": every, "budget": budget, "tables": list(tables), "memory_mb": memory_mb}
    return {f"probes.{key}": value for key, value in found.items()}


def _known(observed: Mapping[str, Any], given: Mapping[str, Any]) -> list[tuple[str, Any, str]]:
    """What the caller says stands before what is seen."""
    seen = [(key, value, "observed") for key, value in observed.items() if key not in given]
    return seen + [(key, value, "given") for key, value in given.items()]


def _facts(models: Mapping[str, nn.Module], keys: Keys) -> dict[str, Any]:
    """For run.json."""
    found = {key: value for key, value, _ in keys}
    base = ", ".join(type(model).__name__ for model in models.values())
    return {"steps": found.get("train.steps"), "method": found["train.method"], "base": found.get("model.base", base)}


def _unrecorded(tables: Sequence[str], reason: str, pairs: Sequence[LayerPair]) -> dict[str, str]:
    found = {table: "not among the tables that were asked for" for table in TABLES if table not in tables}
    if reason:
        found |= dict.fromkeys(TABLES, reason)
    if not pairs:
        found.setdefault("adapters", "the model has no LoRA layers")
    return found
