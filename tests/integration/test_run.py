"""`trainscope run` as a user runs it: what it prints, what it leaves, what it exits with."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.integration.commands import ENVIRONMENT, Result, config_text, in_a_process, settings, trainscope
from trainscope.proof.runs import RunSpec, make_run
from trainscope.runlog.reader import Run, read_run
from trainscope.runlog.tables import TABLES

STEPS, BATCH, ACCUMULATION = 12, 5, 2
TRAINED_ON, HELD_OUT = 25, 3
"""Of the 28 shapes."""


@dataclass(frozen=True)
class Finished:
    """A run that a real process made, from another folder than its configuration's."""

    result: Result
    folder: Path
    path: Path
    run: Run


@pytest.fixture(scope="module")
def finetune(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("finetune")
    (folder / "sub").mkdir()
    (folder / "sub" / "cfg.toml").write_text(config_text("# a remark", steps=STEPS), encoding="utf-8")
    changes = settings(
        "train.method=finetune",
        f"train.batch_size={BATCH}",
        f"train.gradient_accumulation={ACCUMULATION}",
        "optimizer.lr=1e-3",
        "ema.enabled=true",
        "eval.every_steps=6",
        "sample.every_steps=6",
        "sample.steps=2",
        "probes.every=3",
        "run.device=cpu",
        "run.name=mine",
    )
    result = in_a_process("run", "sub/cfg.toml", *changes, cwd=folder)
    assert result.code == 0, result.err
    path = folder / result.last_line
    return Finished(result, folder, path, read_run(path))


@pytest.fixture(scope="module")
def lora() -> Run:
    return read_run(make_run(RunSpec({"train.method": "lora", "lora.rank": 4, "train.steps": 12, "probes.every": 4})))


def rows(run: Run, table: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = run.datasets[table].to_table().to_pylist()
    return found


# ---- what it prints


def test_the_last_line_is_the_run_directory(finetune: Finished) -> None:
    assert finetune.path.is_dir()
    assert finetune.path.parent.samefile(finetune.folder / "sub" / "runs")
    assert finetune.path.name.startswith("mine-2")
    assert finetune.result.err == ""


def test_a_pipe_gets_plain_lines(finetune: Finished) -> None:
    out = finetune.result.out
    assert "\x1b" not in out
    assert "\r" not in out
    assert all(char == "\n" or char.isprintable() for char in out)
    (begin,) = [line for line in out.splitlines() if line.startswith("finetune of tiny:sd15 on cpu: ")]
    assert f"{TRAINED_ON} images, {HELD_OUT} held out, {STEPS} steps" in begin
    assert begin.rpartition(" ")[2].isdigit(), "the line was cut"
    assert f"\nstep 1/{STEPS}  loss " in out
    assert f"completed at step {STEPS}" in out


def test_it_says_where_the_weights_are(finetune: Finished) -> None:
    checkpoint = finetune.path / "checkpoints" / f"step-{STEPS:08d}"
    assert f"The trained weights: {checkpoint / 'weights'}\n" in finetune.result.out
    assert f"Their average (EMA): {checkpoint / 'weights-ema'}\n" in finetune.result.out


def test_it_audits_at_the_end(finetune: Finished) -> None:
    assert (finetune.path / "report.html").stat().st_size > 1000
    report = json.loads((finetune.path / "report.json").read_text(encoding="utf-8"))
    assert report["run"]["status"] == "completed"
    assert len(report["samples"]) == 3 * 2 * 2


@pytest.mark.slow
def test_a_terminal_gets_a_progress_bar(tmp_path: Path) -> None:
    (tmp_path / "cfg.toml").write_text(config_text(steps=20), encoding="utf-8")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "trainscope", "run", "cfg.toml", *settings("run.device=cpu", "sample.every_steps=0")],
        cwd=tmp_path,
        env={**ENVIRONMENT, "TERM": "xterm-256color"},
        stdout=theirs,
        stderr=theirs,
        stdin=theirs,
    )
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # the other side closes when the process ends
        while part := os.read(ours, 4096):
            shown += part
    os.close(ours)
    text = shown.decode()
    assert process.wait() == 0, text
    assert "\x1b[" in text
    assert "20/20" in text
    assert "Traceback" not in text


# ---- what it exits with

FAULTY = ("train.method=finetune", "precision.weights=bf16", "optimizer.lr=1e-6", "eval.every_steps=30")


@pytest.mark.parametrize(("options", "code"), [((), 0), (("--fail-on", "error"), 1)], ids=["default", "fail-on error"])
def test_the_exit_code_of_a_training_with_findings(options: tuple[str, ...], code: int, tmp_path: Path) -> None:
    (tmp_path / "cfg.toml").write_text(config_text(steps=60), encoding="utf-8")
    changes = settings(*FAULTY, "sample.every_steps=0", "run.seed=1", "run.device=cpu", "checkpoint.save_state=false")
    result = trainscope("run", tmp_path / "cfg.toml", *changes, *options)
    assert result.code == code, result.err
    assert "PREC001" in result.out
    run = Path(result.last_line)
    assert read_run(run).status == "completed"
    assert trainscope("audit", run).code == 1


def test_without_an_audit_nothing_is_reported(tmp_path: Path) -> None:
    (tmp_path / "cfg.toml").write_text(config_text(steps=1), encoding="utf-8")
    # One step is too few, which preflight would find.
    changes = settings("sample.every_steps=0", "run.device=cpu", "audit.thresholds.SCH104.min_seen=0")
    result = trainscope("run", tmp_path / "cfg.toml", *changes, "--no-audit", "--fail-on", "info")
    assert result.code == 0
    assert not list(Path(result.last_line).glob("report.*"))


def test_the_run_directory_is_told_even_if_the_audit_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The training is done and the weights are there, whatever came after."""
    from trainscope.cli import auditing

    def broken(*_: object, **__: object) -> None:
        raise OSError("no room")

    monkeypatch.setattr(auditing, "write_reports", broken)
    (tmp_path / "cfg.toml").write_text(config_text(steps=1), encoding="utf-8")
    result = trainscope("run", tmp_path / "cfg.toml", *settings("sample.every_steps=0", "run.device=cpu"))
    assert result.code == 3
    assert "no room" in result.err
    assert read_run(result.last_line).status == "completed"


# ---- what it leaves


def test_the_directory(finetune: Finished) -> None:
    info = finetune.run.info
    assert (info["format"], info["name"], info["status"], info["parent"]) == (1, "mine", "completed", None)
    (segment,) = info["segments"]
    assert (segment["number"], segment["start_step"], segment["end_step"]) == (0, 0, STEPS)
    assert "# a remark" in finetune.run.config_text
    assert finetune.run.config_path == (finetune.folder / "sub" / "cfg.toml").resolve()
    assert not [path for path in finetune.path.rglob("*") if ".tmp" in path.name]
    (checkpoint,) = (finetune.path / "checkpoints").iterdir()
    assert {path.name for path in checkpoint.iterdir()} == {"weights", "weights-ema", "state", "fingerprint.parquet"}
    assert len(list((finetune.path / "samples").glob("*.png"))) == 3 * 2 * 2


def test_every_key_has_a_value_and_an_origin(finetune: Finished) -> None:
    found = {row["key"]: (row["value"], row["origin"]) for row in finetune.run.config_rows()}
    assert found["train.steps"] == (STEPS, "file")
    assert found["train.batch_size"] == (BATCH, "cli")
    assert found["lora.rank"] == (16, "default")
    assert found["run.seed"][1] == "derived"
    assert found["plan.steps"] == (STEPS, "derived")
    table = {row["key"]: row for row in rows(finetune.run, "config")}
    assert table.keys() == found.keys()
    assert table["train.method"]["value"] == "finetune"
    assert table["train.batch_size"]["value"] == str(BATCH)


@pytest.mark.parametrize(
    "table",
    ["params", "steps", "tensors", "groups", "ema", "evals", "events", "order", "samples", "data", "config", "env"],
)
def test_every_table_of_a_finetune_has_rows(table: str, finetune: Finished) -> None:
    assert rows(finetune.run, table)


def test_a_lora_has_adapters(lora: Run) -> None:
    found = rows(lora, "adapters")
    assert {row["step"] for row in found} == {4, 8, 12}
    assert len(found) == 3 * len(rows(lora, "params")) // 2
    assert all(row[name] is not None for row in found for name in row)
    assert all(row["rank"] == 4 and row["scale"] == 4.0 for row in found), "lora.alpha is 16"
    assert all(row["b_norm"] > 0 for row in found)


def test_what_is_absent_has_a_reason(finetune: Finished) -> None:
    reasons = {(row["table"], row["column"]): row["reason"] for row in rows(finetune.run, "coverage")}
    assert "CPU" in reasons[("steps", "memory_bytes")]
    assert all(reasons.values())


def test_every_step_is_complete(finetune: Finished, lora: Run) -> None:
    for run in (finetune.run, lora):
        steps = sorted(rows(run, "steps"), key=lambda row: int(row["step"]))
        assert [row["step"] for row in steps] == list(range(1, 13))
        for row in steps:
            missing = {name for name, value in row.items() if value is None}
            assert missing == {"memory_bytes"}, row
            parts = sum(row[f"{part}_seconds"] for part in ("data", "forward", "backward", "optimizer"))
            assert 0 < parts <= row["seconds"]
            assert 0 <= row["probe_seconds"] < row["seconds"]
            assert row["optimizer_steps"] == row["step"]
            assert not row["skipped"]
            assert row["grad_norm"] > 0
            assert row["grad_norm_before_backward"] == 0
        assert [row["time"] for row in steps] == sorted(row["time"] for row in steps)
        groups = rows(run, "groups")
        assert [row["step"] for row in groups] == list(range(1, 13))


def test_every_sample_seen_is_in_the_order(finetune: Finished) -> None:
    """25 images in batches of 5: whole batches, each epoch has every image once."""
    order = rows(finetune.run, "order")
    assert len(order) == STEPS * BATCH * ACCUMULATION
    seen = [row["sample"] for row in order]
    train = {row["sample"] for row in rows(finetune.run, "data") if row["split"] == "train"}
    for start in range(0, len(seen) - TRAINED_ON, TRAINED_ON):
        assert set(seen[start : start + TRAINED_ON]) == train
    by_step: dict[int, int] = {}
    for row in order:
        by_step[row["step"]] = by_step.get(row["step"], 0) + 1
    steps = rows(finetune.run, "steps")
    assert by_step == {row["step"]: row["samples"] for row in steps}
    assert {row["micro_steps"] for row in steps} == {ACCUMULATION}


def test_a_short_last_batch_is_counted(lora: Run) -> None:
    """25 images in batches of 4: every seventh has one."""
    steps = {row["step"]: row["samples"] for row in rows(lora, "steps")}
    assert steps[7] == 1
    assert {count for step, count in steps.items() if step != 7} == {4}
    assert len(rows(lora, "order")) == sum(steps.values())


def test_the_data(finetune: Finished) -> None:
    data = rows(finetune.run, "data")
    assert [row["split"] for row in data].count("train") == TRAINED_ON
    assert [row["split"] for row in data].count("validation") == HELD_OUT
    assert all(row["digest"] and row["phash"] and row["width"] and row["tokens"] for row in data)


def test_probed_steps(finetune: Finished) -> None:
    tensors, params = rows(finetune.run, "tensors"), rows(finetune.run, "params")
    assert {row["step"] for row in tensors} == {3, 6, 9, 12}
    assert len(tensors) == 4 * len(params)
    assert len(rows(finetune.run, "ema")) == len(tensors)
    assert all(row["in_optimizer"] and row["requires_grad"] and row["is_model_object"] for row in params)
    assert max(row["distance_from_start"] for row in tensors) > 0


def test_evaluations_and_events(finetune: Finished) -> None:
    evals = rows(finetune.run, "evals")
    assert {(row["step"], row["weights"]) for row in evals} == {
        (step, weights) for step in (0, 6, 12) for weights in ("raw", "ema")
    }
    assert {row["split"] for row in evals} == {"validation"}
    start = {row["weights"]: row["loss"] for row in evals if row["step"] == 0}
    assert start["raw"] == start["ema"]
    kinds = [row["kind"] for row in rows(finetune.run, "events")]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"eval": 6, "sample": 3, "save": 1}


def test_samples(finetune: Finished) -> None:
    samples = rows(finetune.run, "samples")
    assert len(samples) == 3 * 2 * 2
    assert all((finetune.path / row["path"]).is_file() for row in samples)
    for row in samples:
        assert (row["distance"] is None) == (row["step"] == 0)


def test_every_column_is_known(finetune: Finished, lora: Run) -> None:
    for run in (finetune.run, lora):
        assert run.datasets.keys() == TABLES.keys()
        for name, table in TABLES.items():
            assert run.datasets[name].schema.names == [column.name for column in table.columns]


# ---- the weights are of use


def how_to_use(result: Result) -> str:
    """The Python that `run` printed."""
    lines = result.out.partition("To use them:\n")[2].splitlines()
    return textwrap.dedent("\n".join(line for line in lines if line.startswith("    ")))


def test_the_finetuned_weights_load_in_diffusers(finetune: Finished) -> None:
    """With the very lines that `run` printed; the model is another than the one it began from."""
    from diffusers import StableDiffusionPipeline

    from trainscope.trainer.models.tiny import tiny_folder

    space: dict[str, Any] = {}
    exec(compile(how_to_use(finetune.result), "what run printed", "exec"), space)
    assert space["image"].size == (64, 64)
    trained = space["pipe"].unet.state_dict()
    base = StableDiffusionPipeline.from_pretrained(tiny_folder("sd15"), safety_checker=None).unet.state_dict()
    assert trained.keys() == base.keys()
    assert all(tensor.dtype == torch.float32 and torch.isfinite(tensor).all() for tensor in trained.values())
    moved = [name for name in base if not torch.equal(trained[name], base[name])]
    assert len(moved) > 0.95 * len(base)
    average = StableDiffusionPipeline.from_pretrained(
        finetune.path / "checkpoints" / f"step-{STEPS:08d}" / "weights-ema", safety_checker=None
    )
    assert any(not torch.equal(tensor, trained[name]) for name, tensor in average.unet.state_dict().items())


def test_the_lora_loads_in_diffusers(tmp_path: Path) -> None:
    (tmp_path / "cfg.toml").write_text(config_text(steps=6), encoding="utf-8")
    changes = settings("optimizer.lr=1e-2", "sample.every_steps=0", "run.device=cpu", "precision.save=fp16")
    result = trainscope("run", tmp_path / "cfg.toml", "--no-audit", *changes)
    assert result.code == 0, result.err
    space: dict[str, Any] = {}
    with_lora = how_to_use(result).replace(
        'pipe("a prompt")', 'pipe("a prompt", generator=seeded(), num_inference_steps=5)'
    )
    space["seeded"] = lambda: torch.Generator().manual_seed(0)
    exec(compile(with_lora, "what run printed", "exec"), space)
    (line,) = [line for line in with_lora.splitlines() if line.startswith("image = ")]
    space["pipe"].unload_lora_weights()
    exec(line.replace("image", "plain", 1), space)
    assert space["image"].tobytes() != space["plain"].tobytes()


@pytest.mark.slow
def test_odd_names(tmp_path: Path) -> None:
    """Spaces, brackets that rich takes for markup, letters beyond ASCII: in folders, files and reports."""
    odd = tmp_path / "a [red]b [bold] é #x"
    odd.mkdir()
    (odd / "c [red].toml").write_text(config_text(steps=60), encoding="utf-8")
    changes = settings(*FAULTY, "sample.every_steps=0", "run.seed=1", "run.device=cpu", "checkpoint.save_state=false")
    result = trainscope("run", odd / "c [red].toml", *changes)
    assert result.code == 0, result.err
    run = Path(result.last_line)
    assert run.parent.parent == odd
    assert f"Report: {run / 'report.html'}" in trainscope("audit", run).out
    fixed = odd / "f [red].toml"
    assert trainscope("fix", run, "--output", fixed).code == 0
    assert trainscope("preflight", fixed, "--fail-on", "never").code == 0
    assert "nope [red]x[/red]" in trainscope("audit", odd / "nope [red]x[/red]").message
    assert "[red]x[/red]" in trainscope("sql", run, "SELECT '[red]x[/red]' AS a").out
