"""Real runs, killed at any moment: what was flushed reads, the audit works and says "crashed"; runs never meet."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.integration.commands import ENVIRONMENT, config_text, settings, trainscope
from trainscope.errors import RunError
from trainscope.runlog.reader import read_run
from trainscope.runlog.rundir import RunDir, create_run

STEPS = 400

# The command itself, but for flushing ten times a second instead of every ten.
RUNNER = """
import trainscope.runlog.writer as writer
writer.RunWriter.__init__.__kwdefaults__["flush_seconds"] = 0.1
from trainscope.cli import main
main()
"""

OPTIONS = settings(
    "sample.every_steps=0",
    "eval.every_steps=100",
    "train.batch_size=1",
    "optimizer.lr=1e-3",
    "lora.rank=4",
    "probes.every=2",
    "run.device=cpu",
)


@dataclass
class Running:
    """A `trainscope run` under way, in a folder of its own."""

    process: subprocess.Popen[str]
    folder: Path

    @property
    def run(self) -> Path | None:
        """The run directory, as soon as it is one."""
        found = sorted(self.folder.glob("runs/*/run.json"))
        return found[0].parent if found else None

    def wait_until(self, moment: Callable[[Path], bool], timeout: float = 90) -> Path:
        """Wait for something to be true of the run directory; it must not end before."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if (run := self.run) is not None and moment(run):
                return run
            if self.process.poll() is not None:
                raise AssertionError(f"ended with {self.process.returncode}: {self.process.communicate()}")
            time.sleep(0.001)
        raise AssertionError("the moment never came")

    def end(self, number: int) -> tuple[int, list[str], str]:
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=120)
        return self.process.returncode, out.splitlines(), err


@pytest.fixture
def start(tmp_path: Path) -> object:
    """Start `trainscope run` with options; whatever still runs at the end is killed."""
    running: list[Running] = []

    def begin(*options: str, steps: int = STEPS, folder: str = "") -> Running:
        place = tmp_path / (folder or f"place-{len(running)}")
        place.mkdir(exist_ok=True)
        (place / "cfg.toml").write_text(config_text(steps=steps), encoding="utf-8")
        process = subprocess.Popen(
            [sys.executable, "-c", RUNNER, "run", "cfg.toml", *OPTIONS, *options],
            cwd=place,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        running.append(Running(process, place))
        return running[-1]

    yield begin
    for one in running:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()


Start = Callable[..., Running]


# ---- moments


def flushed(parts: int) -> Callable[[Path], bool]:
    return lambda run: len(list((run / "log" / "steps").glob("s*.parquet"))) >= parts


def just_made(run: Path) -> bool:
    return bool(read_run(run).info["segments"])


def saving(run: Path) -> bool:
    return any(run.glob("checkpoints/.step-*.tmp/*"))


def pruning(run: Path) -> bool:
    """While a third checkpoint is being saved, the first is about to go."""
    return saving(run) and len(list(run.glob("checkpoints/step-*"))) >= 2


# ---- what must hold of a killed run


def check_killed(run: Path, *, begun: bool = True) -> int:
    """The number of steps that its log has."""
    for part in run.glob("log/*/s*.parquet"):
        pq.read_table(part)
    assert RunDir(run).read()["status"] == "running"
    read = read_run(run)
    assert read.status == "crashed"
    steps = read.datasets["steps"].to_table().sort_by("step")
    assert steps["step"].to_pylist() == list(range(1, steps.num_rows + 1))
    assert not begun or steps.num_rows
    assert None not in steps["loss"].to_pylist()
    for table in ("tensors", "adapters"):
        seen = set(read.datasets[table].to_table(columns=["step"])["step"].to_pylist())
        assert all(step <= STEPS for step in seen)

    result = trainscope("audit", run)
    assert result.code in (0, 1), result.err
    assert "crashed" in result.out
    assert (run / "report.html").stat().st_size > 1000
    assert '"crashed"' in (run / "report.json").read_text(encoding="utf-8")
    for checkpoint in run.glob("checkpoints/step-*"):
        check_whole(checkpoint)
    return steps.num_rows


def check_whole(checkpoint: Path) -> None:
    from safetensors.torch import load_file

    from trainscope.runlog.fingerprint import read_fingerprint
    from trainscope.trainer.checkpoints.state import read_state

    assert load_file(checkpoint / "weights" / "pytorch_lora_weights.safetensors")
    state = read_state(checkpoint)
    assert None not in (state.weights, state.optimizer, state.groups, state.scheduler, state.random)
    assert read_fingerprint(checkpoint)


def test_killed_while_it_saves_and_while_it_trains(start: Start) -> None:
    saves = start("--set", "checkpoint.every_steps=20")
    trains = start()
    run = saves.wait_until(saving)
    assert saves.end(signal.SIGKILL)[0] == -signal.SIGKILL
    other = trains.wait_until(flushed(3))
    assert trains.end(signal.SIGKILL)[0] == -signal.SIGKILL
    # A checkpoint is written when everything before it is on disk.
    assert check_killed(run) == 20
    assert check_killed(other) >= 10
    assert not list(run.glob("checkpoints/step-*"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_killed_at_random_moments(seed: int, start: Start) -> None:
    rng = random.Random(seed)
    running = start("--set", "checkpoint.every_steps=30", "--set", "ema.enabled=true")
    run = running.wait_until(flushed(rng.randrange(1, 6)))
    time.sleep(rng.random() / 2)
    running.end(signal.SIGKILL)
    check_killed(run)


@pytest.mark.slow
def test_killed_before_the_first_step(start: Start) -> None:
    running = start()
    run = running.wait_until(just_made)
    running.end(signal.SIGKILL)
    assert check_killed(run, begun=False) <= 10


@pytest.mark.slow
def test_killed_while_old_checkpoints_are_deleted(start: Start) -> None:
    running = start("--set", "checkpoint.every_steps=10", "--set", "checkpoint.keep=2")
    run = running.wait_until(pruning)
    for _ in range(20):
        if not saving(run):
            break
        time.sleep(0.001)
    running.end(signal.SIGKILL)
    check_killed(run)
    assert 2 <= len(list(run.glob("checkpoints/step-*"))) <= 3


@pytest.mark.slow
def test_killed_as_soon_as_it_is_a_directory(start: Start) -> None:
    """Before the first segment there is nothing to audit: that is said, and nothing is in the way of the next run."""
    running = start(folder="same")
    deadline = time.monotonic() + 90
    while not list(running.folder.glob("runs/*")) and time.monotonic() < deadline:
        time.sleep(0.0005)
    running.end(signal.SIGKILL)
    (folder,) = running.folder.glob("runs/*")
    result = trainscope("audit", folder)
    assert result.code in (0, 1, 2), result.err
    if result.code == 2:
        assert "no segment" in result.message or "not a run directory" in result.message
    else:
        assert "crashed" in result.out


def check_interrupted(code: int, out: list[str], err: str, run: Path) -> None:
    assert code == 130, err
    assert err == ""
    assert run.samefile(run.parent.parent / out[-1]) or run.samefile(out[-1])
    read = read_run(run)
    assert read.status == read.info["status"] == "interrupted"
    last = read.last_step()
    assert 0 < last < STEPS
    assert f"interrupted at step {last}" in "\n".join(out)
    (checkpoint,) = run.glob("checkpoints/step-*")
    assert checkpoint.name == f"step-{last:08d}"
    check_whole(checkpoint)
    kinds = read.datasets["events"].to_table()["kind"].to_pylist()
    assert {"interrupt", "save"} <= set(kinds)
    assert (run / "report.html").exists()


def test_sigterm_saves_and_stops(start: Start) -> None:
    running = start()
    run = running.wait_until(flushed(1))
    check_interrupted(*running.end(signal.SIGTERM), run)


@pytest.mark.slow
def test_sigint_saves_and_stops(start: Start) -> None:
    running = start()
    run = running.wait_until(flushed(1))
    check_interrupted(*running.end(signal.SIGINT), run)


@pytest.mark.slow
def test_two_sigints_stop_at_once(start: Start) -> None:
    running = start()
    run = running.wait_until(flushed(1))
    running.process.send_signal(signal.SIGINT)
    code, _, err = running.end(signal.SIGINT)
    assert code == 130
    assert "Traceback" not in err
    assert read_run(run).status in ("crashed", "interrupted")
    assert trainscope("audit", run).code in (0, 1)


@pytest.mark.slow
def test_an_audit_of_a_run_that_still_goes(start: Start) -> None:
    running = start()
    run = running.wait_until(flushed(1))
    result = trainscope("audit", run, "--output", running.folder / "report", "--fail-on", "never")
    assert running.process.poll() is None, "the run was over too early for this test"
    assert result.code == 0, result.err
    assert "running" in result.out
    running.end(signal.SIGKILL)


# ---- runs never meet


@pytest.mark.slow
def test_two_runs_at_once_take_two_directories(start: Start) -> None:
    both = [start("--no-audit", steps=3, folder="same") for _ in range(2)]
    ends = [one.process.communicate(timeout=120) for one in both]
    assert [one.process.returncode for one in both] == [0, 0], ends
    folders = {out.splitlines()[-1] for out, _ in ends}
    assert len(folders) == 2
    for folder in folders:
        read = read_run(both[0].folder / folder)
        assert (read.status, read.last_step()) == ("completed", 3)


@pytest.mark.slow
def test_two_runs_with_one_out(start: Start) -> None:
    both = [start("--no-audit", "--out", "mine", steps=3, folder="same") for _ in range(2)]
    ends = [one.process.communicate(timeout=120) for one in both]
    assert sorted(one.process.returncode for one in both) == [0, 2], ends
    (loser,) = [err for one, (_, err) in zip(both, ends, strict=True) if one.process.returncode == 2]
    assert loser.startswith("error: ")
    assert "mine" in loser
    assert "Traceback" not in loser
    read = read_run(both[0].folder / "mine")
    assert (read.status, read.last_step()) == ("completed", 3)


@pytest.mark.parametrize("made", [True, False], ids=["an empty folder", "no folder"])
def test_of_many_that_want_a_directory_one_gets_it(made: bool, tmp_path: Path) -> None:
    for attempt in range(30):
        out = tmp_path / f"run-{attempt}"
        if made:
            out.mkdir()
        barrier, won, lost = threading.Barrier(4), [], []

        def claim(
            out: Path = out, barrier: threading.Barrier = barrier, won: list[RunDir] = won, lost: list[str] = lost
        ) -> None:
            barrier.wait()
            try:
                won.append(create_run(tmp_path, "run", out=out))
            except RunError as error:
                lost.append(str(error))

        threads = [threading.Thread(target=claim) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(won), len(lost)) == (1, 3)
        assert RunDir(out).read()["status"] == "running"


def test_of_many_in_one_second_each_gets_its_own(tmp_path: Path) -> None:
    barrier, made = threading.Barrier(8), []

    def claim() -> None:
        barrier.wait()
        made.append(create_run(tmp_path, "run").path)

    threads = [threading.Thread(target=claim) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 8


def test_a_run_that_is_held_cannot_be_held_again(tmp_path: Path) -> None:
    run = create_run(tmp_path, "run")
    assert run.status() == "crashed"
    with run.lock():
        assert run.status() == "running"
        with pytest.raises(RunError, match="in use by another process"), run.lock():
            pass
        assert run.status() == "running"
    assert run.status() == "crashed"
