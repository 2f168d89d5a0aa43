"""Interrupted and resumed is uninterrupted, bit for bit: all state, and every row that is neither clock nor memory."""

from __future__ import annotations

import itertools
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file

from tests.choices import is_possible, pairs, pairwise
from tests.integration.commands import bits, digest
from tests.integration.resuming import (
    BLIND,
    EPOCH,
    LORA,
    STEPS,
    Signal,
    Trained,
    Values,
    assert_continued,
    assert_same_training,
    differences,
    killed,
    log_differences,
    odd,
    pictures,
    resolved,
    rows,
    statuses,
    trained,
)
from tests.integration.test_bit_identity import NEEDED
from trainscope.config.model import SchedulerSection
from trainscope.config.optimizer import OPTIMIZERS, SCHEDULE_FREE, WARMED_UP
from trainscope.config.optimizers.shared import Estimated
from trainscope.proof.damages import DAMAGES
from trainscope.runlog.rundir import RunDir
from trainscope.trainer.callbacks import Callback
from trainscope.trainer.checkpoints.folder import whole_checkpoints
from trainscope.trainer.session import Session

SCHEDULES: dict[str, Values] = {
    "constant-with-warmup": {"scheduler.warmup": 6.0},
    "cosine": {"scheduler.warmup": 0.3},
    "cosine-with-restarts": {"scheduler.cycles": 2, "scheduler.min_lr_ratio": 0.1},
    "polynomial": {"scheduler.power": 2.0, "scheduler.warmup": 2.0},
}

ACCUMULATIONS: dict[str, Values] = {"1": {}, "3": {"train.gradient_accumulation": 3}}
AVERAGES: dict[str, Values] = {
    "no-ema": {},
    "ema-fp32": {"ema.enabled": True},
    "ema-bf16": {"ema.enabled": True, "ema.dtype": "bf16"},
}
FORMATS: dict[str, Values] = {
    "fp32": {},
    "bf16": {"precision.weights": "bf16"},
    "bf16-stochastic": {"precision.weights": "bf16", "precision.stochastic_rounding": True},
    "fp16-compute": {"precision.compute": "fp16"},
    "fp16": {"precision.weights": "fp16", "optimizer.eps": 1e-4},  # the default is 0 in fp16
}
METHODS: dict[str, Values] = {
    "finetune": {"train.method": "finetune"},
    "lora": {**LORA, "lora.dropout": 0.1},  # which draws from the global generator
}
STOPS: dict[str, Callable[[], Callback]] = {
    "mid-epoch": lambda: Signal(signal.SIGTERM, EPOCH - 1),
    "mid-accumulation": lambda: Signal(signal.SIGTERM, EPOCH - 1, 2),
    "epoch-end": lambda: Signal(signal.SIGINT, EPOCH),
}
AXES = (ACCUMULATIONS, AVERAGES, FORMATS, METHODS, STOPS)


def possible(row: tuple[str, ...]) -> bool:
    return row[0] != "1" or row[-1] != "mid-accumulation"


ROWS = pairwise(AXES, possible)


def uninterrupted(data: Path, folder: Path, *changes: Values) -> Trained:
    return trained(resolved(data, *changes), folder / "straight")


def check(data: Path, folder: Path, *changes: Values, stop: Callback | int) -> Trained:
    """One training goes through, one is stopped and resumed: they must be the same. Returns the resumed one."""
    straight, config = uninterrupted(data, folder, *changes), resolved(data, *changes)
    stopping, options = ([stop], {}) if isinstance(stop, Callback) else ([], {"stop_at": stop})
    before = trained(config, folder / "resumed", *stopping, **options)
    assert before.finished.status == "interrupted"
    assert before.finished.step < STEPS
    resumed = trained(config, folder / "resumed", resume="latest")
    assert resumed.finished.status == "completed"
    assert_same_training(straight, resumed)
    assert_continued(resumed.run)
    weights = [key for key in straight.bits() if key.startswith("weight ")]
    assert len(weights) > 10
    still = [key for key in weights if straight.bits()[key] == before.bits()[key]]
    assert len(still) <= len(weights) / 2, "the training stood still after the resume, so nothing was tested"
    return resumed


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_every_optimizer(kind: str, few: Path, tmp_path: Path) -> None:
    """Stopped in the middle of a step, in the second epoch."""
    short: Values = {"train.steps": 5, "train.gradient_accumulation": 2, "sample.every_steps": 0, "eval.every_steps": 0}
    changes = {"optimizer.type": kind, "optimizer.lr": None, **NEEDED.get(kind, {}), "train.method": "finetune"}
    resumed = check(few, tmp_path, short, changes, stop=Signal(signal.SIGTERM, 3, 1))
    state = {key for values in resumed.session.optimizer.state.values() for key in values}
    fingerprint = {name[2] for name in statuses(resumed.run) if name[0] == "optimizer"}
    assert state
    assert fingerprint == state, "a resume's audit looks at all of it"


@pytest.mark.slow
@pytest.mark.parametrize("format_", [name for name in FORMATS if name != "fp32"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_every_optimizer_in_every_format(kind: str, format_: str, few: Path, tmp_path: Path) -> None:
    changes = {**METHODS["lora"], **FORMATS[format_], "optimizer.type": kind, "optimizer.lr": None}
    if kind == "adafactor" or "eps" not in OPTIMIZERS[kind].model_fields:
        changes.pop("optimizer.eps", None)  # Adafactor has two
    if not is_possible({key: value for key, value in changes.items() if value is not None}):
        pytest.skip("no such configuration")
    # What D-Adaptation adds up from smaller steps is 0 in fp16.
    estimated = {"optimizer.lr": 1.0, "optimizer.d0": 0.1 if kind.startswith("dadapt") and format_ == "fp16" else 1e-3}
    rate = estimated if issubclass(OPTIMIZERS[kind], Estimated) else {"optimizer.lr": 1e-3}
    check(few, tmp_path, changes, NEEDED.get(kind, {}), rate, {"ema.enabled": True}, stop=EPOCH + 1)


@pytest.mark.parametrize("kind", get_args(SchedulerSection.model_fields["type"].annotation))
def test_every_schedule(kind: str, few: Path, tmp_path: Path) -> None:
    quick: Values = {"sample.every_steps": 0, "eval.every_steps": 0}
    resumed = check(few, tmp_path, LORA, quick, {"scheduler.type": kind, **SCHEDULES.get(kind, {})}, stop=4)
    lrs = [row["lr"] for row in rows(resumed.run, "groups")]
    assert (len(set(lrs)) > 1) == (kind != "constant")


@pytest.mark.parametrize("kind", [name for name, model in OPTIMIZERS.items() if model in SCHEDULE_FREE])
def test_schedule_free_with_a_schedule_and_a_warmup_of_its_own(kind: str, few: Path, tmp_path: Path) -> None:
    changes = {"optimizer.type": kind, "optimizer.lr": 2.5e-3, "scheduler.type": "cosine"}
    warmup = {"scheduler.warmup": 6.0} if OPTIMIZERS[kind] in WARMED_UP else {}
    check(few, tmp_path, LORA, changes, warmup, stop=4)


def test_the_rows_have_every_pair_of_choices() -> None:
    wanted = {pair for row in itertools.product(*AXES) if possible(row) for pair in pairs(row)}
    assert {pair for row in ROWS for pair in pairs(row)} == wanted
    assert len(ROWS) < 24


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids="-".join)
def test_every_pair_of_choices(row: tuple[str, ...], few: Path, tmp_path: Path) -> None:
    accumulation, average, format_, method, stop = row
    changes = ACCUMULATIONS[accumulation] | AVERAGES[average] | FORMATS[format_] | METHODS[method]
    resumed = check(few, tmp_path, changes, stop=STOPS[stop]())
    (begun,) = RunDir(resumed.run).read()["segments"][1:]
    assert begun["start_step"] == (EPOCH if stop == "epoch-end" else EPOCH - 1)
    assert begun["resumed_from"].endswith("-micro-00002") == (stop == "mid-accumulation")
    assert resumed.session.scaler.is_enabled() == (format_ == "fp16-compute")


def test_a_scale_that_was_halved(few: Path, tmp_path: Path) -> None:
    """The GradScaler skipped a step before the stop: optimizer, schedule and average are a step behind the counter."""

    class Overflow(Callback):
        def before_optimizer(self, session: Session) -> None:
            if session.step == 2:
                session.tensors[0].grad[0] = torch.inf  # type: ignore[index]

    changes = {**FORMATS["fp16-compute"], **LORA, "ema.enabled": True, "scheduler.type": "cosine"}
    config = resolved(few, changes)
    straight = trained(config, tmp_path / "straight", Overflow())
    trained(config, tmp_path / "resumed", Overflow(), stop_at=4)
    resumed = trained(config, tmp_path / "resumed", Overflow(), resume="latest")
    assert resumed.session.optimizer_steps == STEPS - 1
    assert resumed.session.scaler.get_scale() == 2**15
    assert_same_training(straight, resumed)
    assert_continued(resumed.run)


def test_a_masked_model(few: Path, tmp_path: Path) -> None:
    """Its random masks are drawn by place in the data too."""
    check(few, tmp_path, LORA, {"model.base": "tiny:sd15-inpainting", "ema.enabled": True}, stop=EPOCH - 1)


def test_gradient_checkpointing_with_dropout(few: Path, tmp_path: Path) -> None:
    check(few, tmp_path, METHODS["lora"], {"train.gradient_checkpointing": True}, stop=4)


def test_the_comparison_sees_a_difference(few: Path, tmp_path: Path) -> None:
    """Of the same length, with the same config: only a piece of state was lost on the way."""
    straight, config = uninterrupted(few, tmp_path, LORA), resolved(few, LORA)
    before = trained(config, tmp_path / "resumed", stop_at=4)
    DAMAGES["moments-zeroed"](before.finished.checkpoint)
    resumed = trained(config, tmp_path / "resumed", resume="latest")
    assert differences(straight.bits(), resumed.bits())
    assert {"steps", "tensors", "evals", "samples"} <= log_differences(straight.run, resumed.run).keys()
    assert set(odd(resumed.run).values()) == {"reset"}


# ---- more than once, and from elsewhere than the end


def test_stopped_twice(few: Path, tmp_path: Path) -> None:
    changes = {**METHODS["lora"], **ACCUMULATIONS["3"], **AVERAGES["ema-bf16"], "scheduler.type": "cosine"}
    straight, config = uninterrupted(few, tmp_path, changes), resolved(few, changes)
    trained(config, tmp_path / "resumed", stop_at=2)
    again = trained(config, tmp_path / "resumed", Signal(signal.SIGTERM, 6, 1), resume="latest")
    assert again.finished.checkpoint.name == "step-00000006-micro-00001"
    resumed = trained(config, tmp_path / "resumed", resume="latest")
    assert_same_training(straight, resumed)
    assert_continued(resumed.run)
    assert [segment["start_step"] for segment in RunDir(resumed.run).read()["segments"]] == [0, 2, 6]


def test_stopped_twice_within_one_step(few: Path, tmp_path: Path) -> None:
    changes = {**METHODS["lora"], **ACCUMULATIONS["3"]}
    straight, config = uninterrupted(few, tmp_path, changes), resolved(few, changes)
    trained(config, tmp_path / "resumed", Signal(signal.SIGTERM, 4, 1))
    trained(config, tmp_path / "resumed", Signal(signal.SIGTERM, 4, 2), resume="latest")
    resumed = trained(config, tmp_path / "resumed", resume="latest")
    assert_same_training(straight, resumed)
    assert_continued(resumed.run)
    names = [path.name for path in whole_checkpoints(resumed.finished.run)]
    assert names == ["step-00000004-micro-00001", "step-00000004-micro-00002", "step-00000009"]


@pytest.mark.parametrize("how", ["stop_at", "signal"])
def test_stopped_at_once_after_a_resume(how: str, few: Path, tmp_path: Path) -> None:
    class AtOnce(Callback):
        def on_start(self, session: Session) -> None:
            signal.raise_signal(signal.SIGTERM)

    straight, config = uninterrupted(few, tmp_path, METHODS["lora"]), resolved(few, METHODS["lora"])
    first = trained(config, tmp_path / "resumed", stop_at=4)
    saved = digest(first.finished.checkpoint)
    callbacks, options = ([], {"stop_at": 4}) if how == "stop_at" else ([AtOnce()], {})
    second = trained(config, tmp_path / "resumed", *callbacks, resume="latest", **options)
    assert (second.finished.status, second.finished.step) == ("interrupted", 4)
    assert second.finished.checkpoint == first.finished.checkpoint
    assert digest(first.finished.checkpoint) == saved
    assert not differences(first.bits(), second.bits())
    resumed = trained(config, tmp_path / "resumed", resume="latest")
    assert_same_training(straight, resumed)
    assert_continued(resumed.run)


def test_stopped_before_the_first_step(few: Path, tmp_path: Path) -> None:
    check(few, tmp_path, METHODS["lora"], {"ema.enabled": True}, stop=0)


def test_resumed_from_an_older_checkpoint(few: Path, tmp_path: Path) -> None:
    """What the earlier history saved later is set aside, nothing is lost, and the new history is as the old one was."""
    changes = {**METHODS["lora"], "checkpoint.every_steps": 3, "ema.enabled": True}
    straight, config = uninterrupted(few, tmp_path, changes), resolved(few, changes)
    before = trained(config, tmp_path / "resumed", stop_at=8)
    run = before.run
    names = ["step-00000003", "step-00000006", "step-00000008"]
    assert [path.name for path in whole_checkpoints(RunDir(run))] == names
    saved = {name: digest(run / "checkpoints" / name) for name in names}
    old = pictures(run)

    resumed = trained(config, run, resume=str(run / "checkpoints" / names[0]))
    assert_same_training(straight, resumed)
    assert_continued(run)
    assert [path.name for path in whole_checkpoints(RunDir(run))] == [names[0], names[1], "step-00000009"]
    aside = run / "checkpoints" / "superseded-by-segment-1"
    assert {path.name: digest(path) for path in aside.iterdir()} == {name: saved[name] for name in names[1:]}
    later = {name: picture for name, picture in old.items() if int(name.split("-")[1]) > 3}
    assert len(later) == 8
    assert {p.name: p.read_bytes() for p in (run / "samples" / aside.name).iterdir()} == later
    # The superseded rows are still there too.
    assert sorted(row["step"] for row in rows(run, "steps") if row["segment"] == 0) == list(range(1, 9))


def test_resumed_from_an_older_checkpoint_again(few: Path, tmp_path: Path) -> None:
    """In the middle of a step is later than the step's beginning."""
    changes = {**LORA, **BLIND, **ACCUMULATIONS["3"], "checkpoint.every_steps": 4}
    config = resolved(few, changes)
    run = trained(config, tmp_path / "run", Signal(signal.SIGTERM, 4, 2)).run
    # Stopped within the fifth step: the step before was to be saved, and has been.
    assert [p.name for p in whole_checkpoints(RunDir(run))] == ["step-00000004", "step-00000004-micro-00002"]
    for segment in (1, 2):
        trained(config, run, resume=str(run / "checkpoints" / "step-00000004"), stop_at=6)
        aside = run / "checkpoints" / f"superseded-by-segment-{segment}"
        assert [p.name for p in aside.iterdir()] == ["step-00000004-micro-00002" if segment == 1 else "step-00000006"]
        assert [p.name for p in whole_checkpoints(RunDir(run))] == ["step-00000004", "step-00000006"]


# ---- killed

LONG: Values = {"train.steps": 14, "checkpoint.every_steps": 4, "sample.every_steps": 3}


def check_killed(data: Path, folder: Path, changes: Values, micro_batches: int = 0) -> None:
    """Killed within step 12: the newest checkpoint is of step 8, and the log has ten steps."""
    changes = {**LONG, **changes}
    straight = uninterrupted(data, folder, changes)
    run = folder / "resumed"
    killed(data, run, changes, step=11, micro_batches=micro_batches)
    assert max(row["step"] for row in rows(run, "steps")) == 10
    assert [path.name for path in whole_checkpoints(RunDir(run))] == ["step-00000004", "step-00000008"]
    late = {name: picture for name, picture in pictures(run).items() if name.startswith("step-00000009")}
    assert late
    # Remains of a save that was under way are nobody's.
    remains = run / "checkpoints" / ".step-00000012.1.tmp"
    shutil.copytree(run / "checkpoints" / "step-00000008", remains)

    resumed = trained(resolved(data, changes), run, resume="latest")
    assert_same_training(straight, resumed)
    assert_continued(run)
    assert not remains.exists()
    aside = run / "samples" / "superseded-by-segment-1"
    assert {path.name: path.read_bytes() for path in aside.iterdir()} == late
    superseded = [row["step"] for row in rows(run, "steps") if row["segment"] == 0 and row["step"] > 8]
    assert sorted(superseded) == [9, 10]


@pytest.mark.slow
def test_killed_between_checkpoints(few: Path, tmp_path: Path) -> None:
    changes = {**METHODS["lora"], **AVERAGES["ema-fp32"], **ACCUMULATIONS["3"], "scheduler.type": "cosine"}
    check_killed(few, tmp_path, changes, micro_batches=2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_every_optimizer_killed(kind: str, few: Path, tmp_path: Path) -> None:
    check_killed(few, tmp_path, {"optimizer.type": kind, "optimizer.lr": None, **NEEDED.get(kind, {})})


@pytest.mark.slow
@pytest.mark.parametrize("format_", [name for name in FORMATS if name != "fp32"])
def test_every_format_killed(format_: str, few: Path, tmp_path: Path) -> None:
    check_killed(few, tmp_path, {**FORMATS[format_], **METHODS["lora"], **AVERAGES["ema-bf16"]})


# ---- Schedule-Free's two points


@pytest.mark.parametrize("kind", [name for name, model in OPTIMIZERS.items() if model in SCHEDULE_FREE])
def test_schedule_free_is_looked_at_and_saved_for_use_at_x_and_goes_on_at_y(
    kind: str, few: Path, tmp_path: Path
) -> None:
    class Eval(Callback):
        """The weights at y, and those of the optimizer's own eval(), which is then undone."""

        def before_save(self, session: Session) -> None:
            params = session.params
            self.y = {name: param.detach().clone() for name, param in params.items()}
            session.optimizer.eval()  # type: ignore[attr-defined]
            self.x = {name: param.detach().clone() for name, param in params.items()}
            with torch.no_grad():
                for name, param in params.items():
                    param.copy_(self.y[name])
            for group in session.optimizer.param_groups:
                group["train_mode"] = True

    changes = {"optimizer.type": kind, "optimizer.lr": 1e-2, "train.method": "finetune", "ema.enabled": True}
    config, points = resolved(few, changes), Eval()
    stopped = trained(config, tmp_path / "run", points, stop_at=STEPS - 1)
    checkpoint = stopped.finished.checkpoint
    file = checkpoint / "weights" / "unet" / "diffusion_pytorch_model.safetensors"
    for_use = {f"unet.{name}": tensor for name, tensor in load_file(file).items()}
    kept = load_file(checkpoint / "state" / "trained.safetensors")
    z = {name: stopped.session.optimizer.state[param]["z"] for name, param in stopped.session.params.items()}
    section: Any = stopped.session.config.optimizer
    beta = section.momentum if kind == "sgd-schedulefree" else section.betas[0]
    for name in kept:
        assert bits(for_use[name]) == bits(points.x[name])
        assert bits(kept[name]) == bits(points.y[name]) == bits(stopped.session.params[name])
        # y = (1 − β) z + β x
        torch.testing.assert_close(kept[name], torch.lerp(z[name], for_use[name], beta))
    assert any(bits(for_use[name]) != bits(kept[name]) for name in kept)
    groups = json.loads((checkpoint / "state" / "optimizer.json").read_text(encoding="utf-8"))["groups"]
    assert [group["train_mode"] for group in groups] == [True]

    resumed = trained(config, tmp_path / "run", resume="latest")
    for table in ("evals", "samples"):
        modes = {(row["weights"], row["mode"]) for row in rows(resumed.run, table)}
        assert modes == {("raw", "x"), ("ema", None)}
    modes = {(row["moment"], row["mode"]) for row in rows(resumed.run, "checksums") if row["item"] == "raw"}
    assert modes == {
        *((moment, "y") for moment in ("before_save", "after_save", "before_sample", "after_sample", "resumed")),
        ("saved", "x"),
    }
    assert statuses(resumed.run)[("schedule-free", None, "mode at the weights' point")] == "match"


# ---- probes


def test_a_cadence_that_was_settled_is_taken_over(few: Path, tmp_path: Path) -> None:
    """It was measured, and measuring again could give another."""
    config = resolved(few, LORA, {"probes.every": "auto"})
    straight = trained(config, tmp_path / "straight")
    stopped = trained(config, tmp_path / "resumed", stop_at=6)
    every = stopped.session.probes_every
    assert every is not None
    resumed = trained(config, tmp_path / "resumed", resume="latest")
    assert resumed.session.probes_every == every
    cadences = [row for row in rows(resumed.run, "events") if row["kind"] == "probe_cadence"]
    assert [(row["segment"], row["step"], json.loads(row["detail"])) for row in cadences] == [(0, 5, {"every": every})]
    looked = {row["step"] for row in rows(resumed.run, "tensors") if row["segment"] == 1}
    assert looked == {step for step in range(7, STEPS + 1) if step % every == 0 or step == STEPS}
    assert not differences(straight.bits(), resumed.bits())


def test_a_cadence_that_was_not_settled_is_found_out(few: Path, tmp_path: Path) -> None:
    config = resolved(few, LORA, {"probes.every": "auto"})
    assert trained(config, tmp_path / "run", stop_at=3).session.probes_every is None
    resumed = trained(config, tmp_path / "run", resume="latest")
    (settled,) = [row for row in rows(resumed.run, "events") if row["kind"] == "probe_cadence"]
    assert (settled["segment"], settled["step"]) == (1, 8)
    assert {row["step"] for row in rows(resumed.run, "tensors")} >= set(range(1, 9))


def test_looking_or_not_is_free_to_change(few: Path, tmp_path: Path) -> None:
    """Weights depend on neither, across a resume too."""
    straight = uninterrupted(few, tmp_path, METHODS["lora"], {"ema.enabled": True})
    for name, before, after in (("on", BLIND, {}), ("off", {}, BLIND)):
        changes: list[dict[str, Any]] = [METHODS["lora"], {"ema.enabled": True}]
        trained(resolved(few, *changes, before), tmp_path / name, stop_at=4)
        resumed = trained(resolved(few, *changes, after), tmp_path / name, resume="latest")
        assert not differences(straight.bits(), resumed.bits())
