"""The keys of `[scheduler]`, `[precision]`, `[ema]`, `[checkpoint]`, `[sample]`, `[eval]`, `[probes]` and `[audit]`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from tests.integration.commands import trainscope
from tests.integration.every_key.cases_training import FINETUNE, differ, larger, smaller
from tests.integration.every_key.watch import Case, Own, Seen, Values, Watcher, fast
from trainscope.cli.monitor import Monitor

LR = 1e-3
SCHEDULE: Values = {"train.steps": 6, "optimizer.lr": LR}
FALLING: Values = {**SCHEDULE, "scheduler.type": "cosine"}
EMA: Values = {**FINETUNE, "train.steps": 4, "ema.enabled": True}
SAMPLES: Values = {
    **FINETUNE,
    "optimizer.lr": 1e-3,
    "sample.every_steps": 2,
    "sample.steps": 3,
    "sample.prompts": ["a red circle"],
}
FP16, BF16, FP32 = torch.float16, torch.bfloat16, torch.float32


def close(found: list[float], expected: list[float]) -> bool:
    return len(found) == len(expected) and all(
        math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-12) for a, b in zip(found, expected, strict=True)
    )


def lrs(*shares: float) -> list[float]:
    return [LR * share for share in shares]


def on_resume(watcher: Watcher) -> None:
    """A run of four steps, stopped after two, goes on to eight: with a new schedule over six, or one over eight."""
    base = {**FALLING, "train.steps": 4, "checkpoint.save_state": True, "scheduler.type": "linear"}
    seen = {}
    for how in ("restart", "extend"):
        first = watcher.see(base, stop_at=2)
        asked = {**base, "train.steps": 8, "scheduler.on_resume": how, "run.name": how}
        last = watcher.see(asked, resume=str(first.finished.checkpoint))
        seen[how] = last.lrs[-6:]
    assert close(seen["restart"], lrs(*((6 - n) / 6 for n in range(6))))
    assert close(seen["extend"], lrs(*((8 - n) / 8 for n in range(2, 8))))
    first = watcher.see(base, stop_at=2)
    kept = watcher.see({**base, "run.name": "continue"}, resume=str(first.finished.checkpoint))
    assert close(kept.lrs[-2:], lrs(0.5, 0.25))


# ---- [precision]


def trained_formats(seen: Seen) -> set[torch.dtype]:
    return {tensor.dtype for tensor in seen.weights.values()}


def frozen_formats(seen: Seen) -> set[torch.dtype]:
    trained = set(map(id, seen.session.params.values()))
    models = seen.session.components.models.values()
    return {tensor.dtype for model in models for tensor in model.parameters() if id(tensor) not in trained}


def formats(before: torch.dtype, after: torch.dtype) -> Any:
    return lambda one, other: (one, other) == ({before}, {after})


# ---- [ema]


def shadows(seen: Seen) -> list[torch.Tensor]:
    assert seen.session.ema is not None
    return [shadow.clone() for shadow in seen.session.ema.shadow_params]


def lag(seen: Seen) -> float:
    """‖θ − shadow‖ at the end."""
    pairs = zip(seen.session.tensors, shadows(seen), strict=True)
    return sum(float((param - shadow).detach().square().sum()) for param, shadow in pairs) ** 0.5


def ema_device(watcher: Watcher) -> None:
    """The average is kept by the class that brings the weights over, on the CPU, and is the same average."""
    there, here = watcher.see(EMA), watcher.see({**EMA, "ema.device": "cpu"})
    assert type(there.session.ema) is not type(here.session.ema)
    assert {shadow.device.type for shadow in shadows(here)} == {"cpu"}
    assert all(torch.equal(a, b) for a, b in zip(shadows(there), shadows(here), strict=True))
    if torch.cuda.is_available():
        on_gpu = watcher.see({**EMA, "ema.device": "cpu", "run.device": "cuda"})
        assert {shadow.device.type for shadow in shadows(on_gpu)} == {"cpu"}
        assert {tensor.device.type for tensor in on_gpu.session.tensors} == {"cuda"}


# ---- [checkpoint]


def checkpoint_resume(watcher: Watcher) -> None:
    """The training goes on where the checkpoint was, with its weights."""
    base = {"checkpoint.save_state": True, "train.steps": 3}
    first = watcher.see(base, stop_at=2)
    for resume, name in ((str(first.run), "of-a-path"), ("latest", "run")):
        values = {**base, "checkpoint.resume": resume, "run.name": name, "run.dir": str(first.run.parent)}
        second = watcher.see(values)
        assert len(second.passes) == 1, resume
        assert second.finished.step == 3


# ---- [sample]


def pixels(seen: Seen) -> list[bytes]:
    return [content for _, content in seen.images.values()]


def image_sizes(seen: Seen) -> set[tuple[int, int]]:
    return {size for size, _ in seen.images.values()}


def prompts(seen: Seen) -> set[str]:
    return set(seen.column("samples", "prompt"))


# ---- [probes]


def looks(seen: Seen) -> list[int]:
    return sorted(set(seen.column("tensors", "step")))


def probes_budget(watcher: Watcher) -> None:
    """All of the time: a look at (almost) every step. None to speak of: after those that measure, the last step."""
    base = {"train.steps": 12, "probes.every": "auto"}
    plenty, little = (looks(watcher.see({**base, "probes.budget": budget})) for budget in (1.0, 1e-6))
    assert little == [1, 2, 3, 4, 5, 12]
    assert len(plenty) > len(little)


def recorded(seen: Seen) -> set[str]:
    return {table for table in ("tensors", "adapters", "batches") if seen.column(table, "step")}


def estimated(seen: Seen) -> set[str]:
    """Columns that are measured on a sample."""
    return {column for column, reason in seen.column("coverage", "column", "reason") if "sample" in (reason or "")}


# ---- [audit]


def command(watcher: Watcher, *args: object, values: Values) -> Any:
    folder = watcher.folder / "command"
    folder.mkdir(exist_ok=True)
    (folder / "cfg.toml").write_text(watcher.text(values), encoding="utf-8")
    with fast():
        return trainscope(*(folder / "cfg.toml" if arg == "CFG" else arg for arg in args))


def audited(run: Path, *rules: str) -> int | None:
    return trainscope("audit", run, "--format", "json", "--select", ",".join(rules)).code


def audit_fail_on(watcher: Watcher) -> None:
    """The same finding, a caption that is cut off, and another exit code."""
    codes = {level: audited(watcher.see({"audit.fail_on": level}).run, "DATA101") for level in ("error", "warning")}
    assert codes == {"error": 0, "warning": 1}


def audit_thresholds(watcher: Watcher) -> None:
    """One of four captions is cut off, which is too many or just enough."""
    found = {}
    for share in (0.2, 0.3):
        values = {"audit.fail_on": "warning", "audit.thresholds.DATA101.max_share": share}
        found[share] = audited(watcher.see(values).run, "DATA101")
    assert found == {0.2: 1, 0.3: 0}


class Asked:
    """Takes the place of the process that looks at a run: what it is asked, and what it answers at once."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, monitor: Monitor) -> None:
        self.times += 1
        found = {"code": "TEST001", "name": "found", "severity": "error", "message": "something", "remedy": ""}
        monitor._answers.put(json.dumps({"findings": [found], "cpu_seconds": 0.0}))


def _trained_live(watcher: Watcher, **values: Any) -> tuple[Asked, Any]:
    asked = Asked()
    settings = {"train.steps": 4, **{f"audit.{key}": value for key, value in values.items()}}

    def at_once(monitor: Monitor, session: Any) -> None:
        monitor._due = 0.0

    with (
        mock.patch.object(Monitor, "_ask", lambda monitor: asked(monitor)),
        mock.patch.object(Monitor, "on_start", at_once),
    ):
        return asked, command(watcher, "run", "CFG", "--no-audit", values=settings)


def audit_live(watcher: Watcher) -> None:
    """Rules are asked while it trains, and what they find is on the console; or nobody is asked."""
    asked, result = _trained_live(watcher, live=True)
    assert asked.times > 0
    assert result.code == 0
    assert "TEST001" in result.out
    asked, result = _trained_live(watcher, live=False)
    assert (asked.times, result.code) == (0, 0)
    assert "TEST001" not in result.out


def audit_on_finding(watcher: Watcher) -> None:
    """The finding stops the training, which saves, says so and exits with 1; or it goes on to its end."""
    _, result = _trained_live(watcher, on_finding="stop")
    assert result.code == 1
    assert "stopping because of TEST001" in result.out
    assert "interrupted at step" in result.out
    _, result = _trained_live(watcher, on_finding="continue")
    assert result.code == 0
    assert "completed at step 4" in result.out


CASES: dict[str, Case | Own] = {
    "scheduler.type": Case(
        "linear",
        lambda seen: seen.lrs,
        lambda before, after: close(before, lrs(*[1] * 6)) and close(after, lrs(*((6 - n) / 6 for n in range(6)))),
        base=SCHEDULE,
    ),
    "scheduler.warmup": Case(
        3,
        lambda seen: seen.lrs,
        lambda before, after: close(after, lrs(0, 1 / 3, 2 / 3, 1, 1, 1)),
        base={**SCHEDULE, "scheduler.type": "constant-with-warmup", "scheduler.warmup": 1},
    ),
    "scheduler.cycles": Case(
        2,
        lambda seen: seen.lrs,
        lambda before, after: close(before, sorted(before, reverse=True)) and math.isclose(after[3], LR),
        base={**SCHEDULE, "scheduler.type": "cosine-with-restarts"},
    ),
    "scheduler.power": Case(
        2.0,
        lambda seen: seen.lrs,
        lambda before, after: math.isclose(after[3] / after[0], (before[3] / before[0]) ** 2, rel_tol=1e-3),
        base={**SCHEDULE, "scheduler.type": "polynomial"},
    ),
    "scheduler.min_lr_ratio": Case(
        0.5, lambda seen: min(seen.lrs), lambda before, after: before < 0.5 * LR <= after, base=FALLING
    ),
    "scheduler.on_resume": on_resume,
    "precision.weights": Case("bf16", trained_formats, formats(FP32, BF16)),
    "precision.base": Case("bf16", frozen_formats, formats(FP32, BF16)),
    "precision.compute": Case("bf16", lambda seen: seen.formats, formats(FP32, BF16)),
    "precision.save": Case("fp16", lambda seen: seen.file_formats, formats(FP32, FP16)),
    "precision.stochastic_rounding": Case(
        # Steps far below the spacing of bf16: rounded to the nearest nothing moves.
        True,
        lambda seen: sum(int((seen.weights[name] != start).sum()) for name, start in seen.started.items()),
        larger,
        base={**FINETUNE, "precision.weights": "bf16", "optimizer.lr": 1e-7},
    ),
    "ema.enabled": Case(
        True,
        lambda seen: any(name.startswith("weights-ema") for name in seen.files),
        lambda before, after: after and not before,
        base={**EMA, "ema.enabled": False},
    ),
    "ema.decay": Case(0.5, lag, smaller, base={**EMA, "ema.warmup": False}),
    "ema.warmup": Case(
        False,
        lambda seen: (lag(seen), seen.column("ema", "decay")[-1]),
        lambda before, after: after[0] > before[0] and after[1] == 0.999 > before[1],
        base=EMA,
    ),
    "ema.every": Case(
        2,
        lambda seen: sorted(set(seen.column("ema", "step"))),
        lambda before, after: (before, after) == ([1, 2, 3, 4], [2, 4]),
        base=EMA,
    ),
    "ema.dtype": Case("bf16", lambda seen: {shadow.dtype for shadow in shadows(seen)}, formats(FP32, BF16), base=EMA),
    "ema.device": ema_device,
    "checkpoint.every_steps": Case(
        1, lambda seen: seen.checkpoints, lambda before, after: (before, after) == ([2], [1, 2])
    ),
    "checkpoint.every_epochs": Case(
        1,
        lambda seen: seen.checkpoints,
        lambda before, after: (before, after) == ([6], [2, 4, 6]),
        base={"train.steps": 6},
    ),
    "checkpoint.keep": Case(
        1,
        lambda seen: seen.checkpoints,
        lambda before, after: (before, after) == ([1, 2], [2]),
        base={"checkpoint.every_steps": 1},
    ),
    "checkpoint.save_state": Case(
        True, lambda seen: seen.files, lambda before, after: set(before) < set(after) and "optimizer" in " ".join(after)
    ),
    "checkpoint.resume": checkpoint_resume,
    "sample.every_steps": Case(
        1,
        lambda seen: sorted(set(seen.column("samples", "step"))),
        lambda before, after: (before, after) == ([0, 2], [0, 1, 2]),
        base=SAMPLES,
    ),
    "sample.prompts": Case(
        ["a blue star", "a ring"],
        lambda seen: (prompts(seen), pixels(seen)),
        lambda before, after: after[0] == {"a blue star", "a ring"} and not set(before[1]) & set(after[1]),
        base=SAMPLES,
    ),
    "sample.negative_prompt": Case("blue", pixels, differ, base=SAMPLES),
    "sample.sampler": Case("euler-a", pixels, differ, base=SAMPLES),
    "sample.steps": Case(5, pixels, differ, base=SAMPLES),
    "sample.guidance": Case(1.0, pixels, differ, base=SAMPLES),
    "sample.seed": Case(7, pixels, differ, base=SAMPLES),
    "sample.width": Case(
        64, image_sizes, lambda before, after: (before, after) == ({(32, 32)}, {(64, 32)}), base=SAMPLES
    ),
    "sample.height": Case(
        64, image_sizes, lambda before, after: (before, after) == ({(32, 32)}, {(32, 64)}), base=SAMPLES
    ),
    "eval.every_steps": Case(
        1, lambda seen: seen.column("evals", "step"), lambda before, after: (before, after) == ([], [0, 1, 2])
    ),
    "eval.samples": Case(
        4,
        lambda seen: seen.column("evals", "draws", "loss"),
        lambda before, after: after[0][0] == 4,
        base={"eval.every_steps": 1, "eval.samples": 2},
    ),
    "probes.every": Case(
        2, looks, lambda before, after: (before, after) == ([1, 2, 3, 4], [2, 4]), base={"train.steps": 4}
    ),
    "probes.budget": probes_budget,
    "probes.memory_mb": Case(
        1, estimated, lambda before, after: not before and "lost_count" in after, base={"train.method": "finetune"}
    ),
    "probes.tables": Case(
        ["adapters"],
        recorded,
        lambda before, after: (before, after) == ({"tensors", "adapters", "batches"}, {"adapters"}),
    ),
    "audit.fail_on": audit_fail_on,
    "audit.live": audit_live,
    "audit.on_finding": audit_on_finding,
    "audit.thresholds": audit_thresholds,
}
