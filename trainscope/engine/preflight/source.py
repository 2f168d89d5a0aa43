"""The tables of a training that has not begun: its configuration, what follows from it, the files that it names.

Opens pictures and weight files only as far as their headers and a few pages of weights need. What it cannot know stays
empty, with a reason, so that the rules that would need it say *not observable*.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from trainscope.config.load import ResolvedConfig
from trainscope.config.plan import plan_run
from trainscope.engine.preflight.model import Absent, find_model
from trainscope.engine.preflight.needs import needed, there
from trainscope.engine.preflight.samples import find_pictures
from trainscope.engine.preflight.trained import param_rows, trained_tensors
from trainscope.engine.tables import TableSource, from_rows, key_value_rows


def preflight_source(resolved: ResolvedConfig, *, out: Path | None = None) -> TableSource:
    """The tables of a training that has not begun; `out` is the run's directory, where that is known.

    Raises `DataError` if there is no data to plan with, `ModelError` for a model that cannot be loaded.
    """
    config = resolved.config
    pictures = find_pictures(resolved.resolve_path(config.data.dir), config.data)
    model = find_model(resolved)
    plan = plan_run(config, pictures.trained, buckets=pictures.counts)
    values: dict[str, Any] = {key: _plain(value) for key, value, _ in resolved.rows()}
    machine = there(resolved, out)
    values.update(plan.keys())
    values.update(machine)
    params: list[dict[str, Any]] = []
    absent: list[dict[str, Any]] = []
    if isinstance(model, Absent):
        absent = [{"table": "params", "column": "", "reason": model.reason}]
    else:
        trained = trained_tensors(config, model.weights)
        params = list(param_rows(config, trained))
        values.update(needed(config, plan, model, trained, pictures, machine["plan.memory_place"] == "the GPU"))
    return from_rows(
        {
            "config": key_value_rows(values, "file"),
            "params": params,
            "data": list(pictures.rows()),
            "coverage": absent,
        }
    )


def _plain(value: Any) -> Any:
    """Infinity has no JSON; the run's own table writes it as text."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
