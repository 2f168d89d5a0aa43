"""Runs to compare that never were: a log in memory, observed as a run directory is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from trainscope.engine.compare.read import HeldOut, ObservedRun, observe_tables
from trainscope.engine.compare.result import Setting
from trainscope.engine.rule import Rule
from trainscope.engine.tables import from_rows, key_value_rows

BASIS = ("16", "validation", "pictures", "epsilon")
CONFIG = {"model.base": "tiny:sd15", "model.vae": None, "optimizer.type": "adamw", "optimizer.lr": 1e-3}


def observed(
    name: str = "a",
    *,
    rules: Sequence[Rule] = (),
    starts: Sequence[int] = (0,),
    info: Mapping[str, Any] | None = None,
    **tables: Any,
) -> ObservedRun:
    """A run with these tables. Its id is its name."""
    given = {"config": key_value_rows(CONFIG, "file"), **tables}
    steps = [row["step"] for row in tables.get("steps", ())]
    facts = {
        "id": name,
        "name": name,
        "origin": "trainscope",
        "status": "completed",
        "last_step": max(steps, default=0),
    }
    source = from_rows(given, segment_starts=starts)
    return observe_tables(Path("/runs") / name, source, {**facts, **(info or {})}, rules)


@cache
def _plain() -> ObservedRun:
    return observed()


def run(name: str, losses: Mapping[int, float] | None = None, **changes: Any) -> ObservedRun:
    """A run of which only the held-out losses, and what `changes` say, matter; `info` is added to what it is."""
    plain = _plain()
    last = max(losses or {0: 0})
    info = {**plain.report.run, "id": name, "name": name, "last_step": last, **changes.pop("info", {})}
    report = replace(plain.report, run=info, **changes.pop("report", {}))
    held_out = {"raw": HeldOut(losses, changes.pop("basis", BASIS))} if losses else {}
    return replace(plain, **{"path": Path("/runs") / name, "report": report, "held_out": held_out, **changes})


def settings(**values: Any) -> dict[str, Setting]:
    """`optimizer__lr=1e-3` → the setting of `optimizer.lr`, from the file; a `Setting` stays what it is."""
    return {
        key.replace("__", "."): value if isinstance(value, Setting) else Setting(value, origin="file")
        for key, value in values.items()
    }
