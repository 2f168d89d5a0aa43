"""`trainscope exec`: a script behaves as without it, is recorded without a change, and its run can be audited."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.integration.commands import ENVIRONMENT, ROOT, trainscope
from tests.unit.integrations.loops import reasons, rows
from trainscope.runlog.reader import read_run

EXAMPLES = ROOT / "examples"
PLAIN = """
import os, sys, json
line = sys.stdin.readline()
print(json.dumps([sys.argv, __name__, os.getcwd(), line, sys.path[0], "torch" in sys.modules, __file__]))
print("to stderr", file=sys.stderr)
sys.exit(7)
"""


def executed(
    *command: object, cwd: Path, options: tuple[object, ...] = (), environment: Any = ENVIRONMENT, **more: Any
) -> Any:
    return subprocess.run(
        [sys.executable, "-m", "trainscope", "exec", *map(str, options), "--", *map(str, command)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=200,
        check=False,
        **more,
    )


def audited(run: Path) -> dict[str, dict[str, Any]]:
    """The rules' outcomes, by code; the audit ends with 0, or with 1 for findings."""
    result = trainscope("audit", run, "--format", "json", "--output", "-")
    assert result.code in (0, 1), result.err
    report = json.loads(result.out)
    return {rule["code"]: rule for rule in report["rules"]}


def fired(run: Path) -> set[str]:
    return {code for code, rule in audited(run).items() if rule["outcome"] == "fired"}


def test_a_script_is_what_it_is_without(tmp_path: Path) -> None:
    """Arguments, streams, folder, path and exit code; also the sitecustomize that the environment has of its own."""
    (tmp_path / "script.py").write_text(PLAIN)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "sitecustomize.py").write_text("print('customized')")
    environment = {**ENVIRONMENT, "PYTHONPATH": str(tmp_path / "own")}
    command = [sys.executable, "script.py", "--debug", "--out", "x", "--", "-v"]
    plain = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, input="in\n", check=False
    )
    done = executed(*command, cwd=tmp_path, input="in\n", environment=environment)
    # The verb itself is a Python process, which the environment customizes too.
    assert done.stdout == "customized\n" + plain.stdout
    assert plain.stdout.startswith("customized\n[[")
    assert done.returncode == plain.returncode == 7
    assert done.stderr.splitlines() == [
        "to stderr",
        "trainscope: nothing was recorded: no PyTorch optimizer took a step",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own", "script.py"]


def test_signals_are_the_scripts_own(tmp_path: Path) -> None:
    script = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print("handled", flush=True), sys.exit(5)))
print("ready", flush=True)
time.sleep(60)
"""
    for number, (text, expected) in enumerate([(script, 5), (script.replace("SIGTERM", "SIGUSR2"), -signal.SIGTERM)]):
        file = tmp_path / f"{number}.py"
        file.write_text(text)
        with subprocess.Popen(
            [sys.executable, "-m", "trainscope", "exec", sys.executable, file],
            cwd=tmp_path,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == expected


def test_what_cannot_be_run_is_told(tmp_path: Path) -> None:
    for arguments, says in (
        (["--", "no-such-program"], "cannot run no-such-program"),
        (["--every", "0", "--", "true"], "--every 0: expected auto or a number of steps"),
        (["--budget", "3", "--", "true"], "--budget 3.0"),
        (["--out", tmp_path, "--", "true"], "is not empty"),
    ):
        (tmp_path / "something").touch()
        result = trainscope("exec", *arguments)
        assert result.code == 2, result.err
        assert says in result.message
        assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()), "signals stay blocked for whoever comes after"


def test_an_unmodified_loop_is_recorded_and_its_fault_found(tmp_path: Path) -> None:
    """One that is broken twice: bf16 weights that round their updates away, and an average that outlives the run."""
    script = [EXAMPLES / "plain-loop" / "train.py", "--weights", "bf16", "--lr", "1e-6", "--decay", "0.9999"]
    done = executed(sys.executable, *script, cwd=tmp_path, options=("--out", "run", "--every", 5))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("loss ")
    run = tmp_path / "run"
    assert done.stderr.splitlines()[-1] == f"trainscope: recorded in {run}"
    assert {"PREC001", "SYM001", "EMA001", "EMA003"} <= fired(run)
    info = read_run(run).info
    assert (info["status"], info["steps"], info["method"], info["origin"]) == ("completed", 100, "finetune", "exec")
    steps = rows(run, "steps")
    assert [row["step"] for row in steps] == list(range(1, 101))
    assert all(row["loss"] is not None for row in steps)
    assert len(rows(run, "tensors")) == len(rows(run, "ema")) == 6 * 20
    assert {row["param"] for row in rows(run, "params")} == {
        f"model.{layer}.{kind}" for layer in (0, 2, 4) for kind in ("weight", "bias")
    }
    assert {row["scheduler_type"] for row in rows(run, "groups")} == {"CosineAnnealingLR"}
    refused = trainscope("fix", run)
    assert refused.code == 2
    assert "no cfg.toml describes" in refused.message


@pytest.mark.slow
def test_the_training_is_bit_for_bit_the_same(tmp_path: Path) -> None:
    """Weights, optimizer state, average and random numbers, of a script that saves them."""
    source = (EXAMPLES / "plain-loop" / "train.py").read_text()
    saving = source.replace(
        'print(f"loss',
        "torch.save([model.state_dict(), optimizer.state_dict(), average.state_dict(), torch.get_rng_state()], 'end')\n"
        '    print(f"loss',
    )
    ends = {}
    for name in ("with", "without"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "train.py").write_text(saving)
        if name == "with":
            assert executed(sys.executable, "train.py", cwd=folder, options=("--every", 1)).returncode == 0
        else:
            subprocess.run([sys.executable, "train.py"], cwd=folder, env=ENVIRONMENT, check=True, capture_output=True)
        ends[name] = (folder / "end").read_bytes()
    assert ends["with"] == ends["without"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("example", "faulty", "codes"),
    [
        ("hf-trainer", ["--weights", "bf16", "--lr", "1e-7"], {"PREC001", "SYM001"}),
        ("accelerate-lora", ["--decay", "0.9999", "--least-decay", "0.9999"], {"EMA001", "EMA003"}),
        ("lightning", ["--weights", "bf16", "--lr", "1e-6"], {"PREC001", "SYM001"}),
    ],
)
def test_unmodified_scripts_of_libraries(example: str, faulty: list[str], codes: set[str], tmp_path: Path) -> None:
    script = EXAMPLES / example / "train.py"
    healthy = executed(sys.executable, script, cwd=tmp_path, options=("--out", "healthy", "--every", 1))
    assert healthy.returncode == 0, healthy.stderr
    outcomes = audited(tmp_path / "healthy")
    assert not [code for code, rule in outcomes.items() if rule["outcome"] in ("fired", "crashed")]
    clear = {code for code, rule in outcomes.items() if rule["outcome"] == "clear"}
    assert codes - {"PREC001"} <= clear
    assert {"SYM004", "LOOP001", "SCH002"} <= clear
    steps = rows(tmp_path / "healthy", "steps")
    assert {row["micro_steps"] for row in steps} == {2}
    assert all(row["loss"] is not None for row in steps)
    assert len({row["step"] for row in rows(tmp_path / "healthy", "tensors")}) == len(steps)
    if example == "accelerate-lora":
        assert "LORA001" in clear
        assert len(rows(tmp_path / "healthy", "adapters")) == 32 * len(steps)
        assert len(rows(tmp_path / "healthy", "ema")) == 64 * len(steps)
    broken = executed(sys.executable, script, *faulty, cwd=tmp_path, options=("--out", "broken", "--every", 1))
    assert broken.returncode == 0, broken.stderr
    assert codes <= fired(tmp_path / "broken")


@pytest.mark.slow
def test_an_optimizer_of_a_copy_of_the_model_is_found(tmp_path: Path) -> None:
    source = (EXAMPLES / "plain-loop" / "train.py").read_text()
    (tmp_path / "train.py").write_text(
        source.replace("AdamW(model.parameters()", "AdamW(__import__('copy').deepcopy(model).parameters()")
    )
    done = executed(sys.executable, "train.py", cwd=tmp_path, options=("--out", "run", "--every", 1))
    assert done.returncode == 0, done.stderr
    assert "SYM001" in fired(tmp_path / "run")
    assert any(not row["is_model_object"] for row in rows(tmp_path / "run", "params"))


@pytest.mark.slow
def test_children_of_launchers_are_recorded_into_one_run(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("""
import torch, torch.distributed as dist
dist.init_process_group("gloo")
torch.manual_seed(dist.get_rank())
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(8, 8))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
for _ in range(6):
    model(torch.randn(4, 8)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
dist.destroy_process_group()
""")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", 2, "train.py"]
    done = executed(*launcher, cwd=tmp_path, options=("--out", "run", "--every", 1))
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    assert done.stderr.count("recorded in") == 1
    steps = rows(run, "steps")
    assert sorted((row["rank"], row["step"]) for row in steps) == [(rank, n) for rank in (0, 1) for n in range(1, 7)]
    assert {row["loss"] for row in steps if row["rank"] == 0} != {row["loss"] for row in steps if row["rank"] == 1}
    assert {row["param"] for row in rows(run, "tensors")} == {"model.weight", "model.bias"}
    assert "crashed" not in {rule["outcome"] for rule in audited(run).values()}


@pytest.mark.slow
def test_of_two_optimizers_the_first_is_recorded_with_its_own_loss(tmp_path: Path) -> None:
    (tmp_path / "gan.py").write_text("""
import torch
first, second = torch.nn.Linear(8, 8), torch.nn.Linear(8, 1)
optimizers = [torch.optim.AdamW(net.parameters(), lr=1e-3) for net in (second, first)]
for _ in range(6):
    for optimizer, value in zip(optimizers, (2.0, 5.0)):
        (second(first(torch.randn(4, 8))).mean() * 0 + value).backward()
        optimizer.step()
        optimizer.zero_grad()
""")
    done = executed(sys.executable, "gan.py", cwd=tmp_path, options=("--out", "run", "--every", 1))
    assert done.returncode == 0, done.stderr
    assert [row["loss"] for row in rows(tmp_path / "run", "steps")] == [2.0] * 6
    assert {row["numel"] for row in rows(tmp_path / "run", "params")} == {8, 1}
    events = [json.loads(row["detail"]) for row in rows(tmp_path / "run", "events") if row["kind"] == "warning"]
    assert [event["message"] for event in events] == [
        "another optimizer steps as well (AdamW); the first to step is recorded"
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "status"), [(signal.SIGTERM, "interrupted"), (signal.SIGKILL, "crashed")])
def test_a_killed_script_leaves_a_run(sent: signal.Signals, status: str, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("""
import os, time, torch
model = torch.nn.Linear(8, 8)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
print(os.getpid(), flush=True)
while True:
    model(torch.randn(4, 8)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    time.sleep(0.02)
""")
    with subprocess.Popen(
        [sys.executable, "-m", "trainscope", "exec", "--out", "run", "--", sys.executable, "train.py"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        child = int(process.stdout.readline())
        until = time.monotonic() + 100
        while not list((tmp_path / "run" / "log" / "steps").glob("*.parquet")):
            assert time.monotonic() < until
            time.sleep(0.1)
        os.kill(child, sent)
        assert process.wait(60) == -sent
        assert process.stderr.read().splitlines()[-1].startswith("trainscope: recorded in")
    assert read_run(tmp_path / "run").status == status
    assert rows(tmp_path / "run", "steps")
    assert reasons(tmp_path / "run")["batches", "latent_std"]
