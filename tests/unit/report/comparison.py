"""Comparisons as the engine would make them: three runs, of which one was resumed, one broke, and one was watched."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from tests.unit.report.fixture import png
from trainscope.engine.compare.result import (
    COMPARISON_FORMAT,
    KIND,
    ComparedSample,
    Difference,
    Differences,
    Earlier,
    FindingCell,
    FindingRow,
    NumberRow,
    Overlay,
    RunComparison,
    RunSummary,
    Setting,
    Standing,
    Value,
)
from trainscope.schema import to_json

NAN = math.nan
STEPS = [0, 20, 40, 60]
SAMPLED = [0, 10, 20, 30, 40, 50, 60]
PROMPTS = ("a red circle", "a blue triangle, sketch")


def summary(label: str, path: Path, **changes: Any) -> RunSummary:
    given: dict[str, Any] = {
        "label": label, "name": label, "id": label, "path": str(path / label), "origin": "trainscope",
        "status": "completed", "last_step": 60, "planned_steps": 60, "created": "2026-11-21T21:00:00+00:00",
        "resumed_at": (), "findings": {"error": 0, "warning": 0, "info": 0},
    }  # fmt: skip
    return RunSummary(**{**given, **changes})


def overlay(name: str, title: str, lines: dict[str, list[float]], **changes: Any) -> Overlay:
    runs = list(lines)
    columns = {
        label: {"step": STEPS[: len(values)], "value": values, "run": runs.index(label)}
        for label, values in lines.items()
    }
    return Overlay(name, title, "mean squared error", False, columns, **changes)


def three_runs(folder: Path) -> dict[str, Any]:
    """The comparison's JSON; the images lie under `folder`."""
    labels = ("base", "hot", "watched")
    rows = [
        Difference(
            "optimizer.lr",
            (
                Setting(5e-4, origin="cli", earlier=(Earlier(1e-3, 30),)),
                Setting(5.0, origin="file"),
                Setting(None, known="not recorded"),
            ),
        ),
        Difference(
            "train.method", (Setting("finetune", origin="file"), Setting("lora", origin="file"), Setting("finetune"))
        ),
    ]
    implied = Difference(
        "optimizer.d0",
        (Setting(None, known="no such key"), Setting(1e-6, origin="default"), Setting(None, known="not recorded")),
    )
    losses = {"base": [1.0, 0.5, 0.3, 0.2], "hot": [1.0, NAN, NAN, NAN], "watched": [0.9, 0.8, 0.7]}
    samples = []
    for run, label in enumerate(labels):
        for step in SAMPLED[: 7 if run < 2 else 5]:
            for number, prompt in enumerate(PROMPTS[: 2 if run < 2 else 1]):
                path = f"samples/{step}-{number}.png"
                (folder / label / "samples").mkdir(parents=True, exist_ok=True)
                (folder / label / path).write_bytes(png(run))
                samples.append(ComparedSample(run, step, path, prompt, 42, "raw"))
    found = RunComparison(
        kind=KIND,
        format=COMPARISON_FORMAT,
        summary="base has the lowest held-out loss at step 60: 0.2, hot has none",
        runs=(
            summary("base", folder, resumed_at=(30,)),
            summary("hot", folder, findings={"error": 2, "warning": 1, "info": 0}, headline="Loss is not finite"),
            summary("watched", folder, origin="exec", status="running", last_step=40, planned_steps=None, unseen=41),
        ),
        notes=("watched is running, up to step 40",),
        standing=Standing((0, 1), (0,), (0.2, NAN), 60),
        config=Differences(tuple(rows), 104),
        implied=Differences((implied,)),
        environment=Differences((Difference("torch", (Setting("2.12"), Setting("2.13"), Setting("2.12"))),), 19),
        observed=Differences((Difference("pictures", (Setting("set A"), Setting("set B"), Setting("set A"))),), 20),
        findings=(
            FindingRow(
                "SYM004", "not-finite", "error", "Loss or gradients are not finite",
                (FindingCell("clear"), FindingCell("fired", "58 of 60 steps had no finite loss", 3),
                 FindingCell("not_observable", "no `steps` rows were recorded")),
            ),
            FindingRow(
                "EMA001", "lag", "warning", "The EMA is behind",
                (FindingCell("fired", "it is 0.9 behind"), FindingCell("fired", "it is 0.8 behind"),
                 FindingCell("fired", "it is 0.7 behind", 10)),
            ),
        ),
        numbers=(
            NumberRow("Held-out loss", "At the end", "", (Value(0.2, 60), Value(NAN, 60), Value(0.7, 40)), 0),
            NumberRow("Time and memory", "Time in steps", "s", (Value(7384.0), Value(2.5), Value(None))),
            NumberRow("Time and memory", "Peak memory", "bytes", (Value(2.0**30), Value(None), Value(NAN))),
            NumberRow("Time and memory", "Steps", "steps", (Value(60.0), Value(12_000.0), Value(40.0))),
        ),
        curves=(
            overlay("eval_loss", "Held-out loss", losses, about="On images that are never trained."),
            overlay("train_loss", "Training loss", losses),
            overlay("loss_by_timestep", "0 to 20 %", losses, panel="loss_by_timestep", about="By noise."),
            overlay("loss_by_timestep", "20 to 40 %", losses, panel="loss_by_timestep", about="By noise."),
            overlay("d", "Estimated step size d", {"base": [1e-6, 1e-4]}),
        ),
        samples=tuple(samples),
    )  # fmt: skip
    return to_json(found)  # type: ignore[no-any-return]
