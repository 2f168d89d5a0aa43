"""A training that was interrupted and resumed, laid beside one that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from tests.integration.commands import ENVIRONMENT, ROOT, bits
from tests.integration.test_bit_identity import everything
from trainscope.config.load import ResolvedConfig
from trainscope.proof.runs import RunSpec
from trainscope.runlog.fingerprint import read_fingerprint
from trainscope.runlog.reader import read_run
from trainscope.runlog.rundir import RunDir
from trainscope.runlog.tables import TABLES
from trainscope.trainer.callbacks import Callback
from trainscope.trainer.checkpoints.folder import whole_checkpoints
from trainscope.trainer.session import Session
from trainscope.trainer.train import train
from trainscope.trainer.training import Finished

Values = dict[str, Any]

STEPS = 9
EPOCH = 5
"""Batches in an epoch of the nine pictures that are trained on; the last one has one picture."""
SMALL: Values = {
    "train.steps": STEPS,
    "train.batch_size": 2,
    "data.resolution": 32,
    "optimizer.lr": 1e-3,
    "eval.every_steps": 3,
    "eval.samples": 4,
    "probes.every": 1,
    "checkpoint.save_state": True,
    "sample.every_steps": 4,
    "sample.steps": 2,
}
LORA: Values = {"train.method": "lora", "lora.rank": 4, "lora.alpha": 4.0}
BLIND: Values = {"eval.every_steps": 0, "sample.every_steps": 0, "probes.tables": []}
"""For tests that are not about what is recorded."""


def resolved(data: Path, *changes: Mapping[str, Any]) -> ResolvedConfig:
    return RunSpec({"data.dir": str(data), **_joined(SMALL, *changes)}).resolved()


def _joined(*parts: Mapping[str, Any]) -> Values:
    values = {key: value for part in parts for key, value in part.items()}
    if values.get("optimizer.lr", 0) is None:  # the optimizer's own default
        del values["optimizer.lr"]
    return values


class Capture(Callback):
    """Keeps hold of the session."""

    session: Session

    def on_start(self, session: Session) -> None:
        self.session = session


class Signal(Callback):
    """Sends this process a signal after some steps, and some micro-batches of the next one."""

    def __init__(self, number: int, step: int, micro_batches: int = 0) -> None:
        self.number, self.step, self.micro_batches = number, step, micro_batches

    def _send(self, session: Session) -> None:
        done = session.micro_step - session.step * session.config.train.gradient_accumulation
        if (session.step, done) == (self.step, self.micro_batches):
            os.kill(os.getpid(), self.number)

    def after_step(self, session: Session) -> None:
        self._send(session)

    def after_micro_batch(self, session: Session) -> None:
        self._send(session)


@dataclass(frozen=True)
class Trained:
    """What a training came to: the way it ended, its session, and the global random state right after it."""

    finished: Finished
    session: Session
    random: torch.Tensor

    @property
    def run(self) -> Path:
        return self.finished.run.path

    def bits(self) -> dict[str, bytes]:
        """Everything that the next step would depend on."""
        found = everything(self.session)
        session = self.session
        counters = (session.step, session.micro_step, session.optimizer_steps, session.seed)
        return {**found, "random": bits(self.random), "counters": repr(counters).encode()}


def trained(config: ResolvedConfig, out: Path | None, *callbacks: Callback, **options: Any) -> Trained:
    """`train`, with a hold on what it leaves."""
    capture = Capture()
    finished = train(config, out=out, callbacks=[capture, *callbacks], **options)
    return Trained(finished, capture.session, torch.get_rng_state())


KILLED = """
import json, sys
from pathlib import Path
import torch
import trainscope.runlog.writer as writer
writer.RunWriter.flush_if_due = writer.RunWriter.flush
from tests.integration.resuming import Signal, resolved, train
torch.set_num_threads(1)
data, out, number, step, micro_batches, values = json.loads(sys.argv[1])
train(resolved(Path(data), values), out=Path(out), callbacks=[Signal(number, step, micro_batches)])
"""


def killed(data: Path, out: Path, changes: Values, *, step: int, micro_batches: int = 0) -> None:
    """Train in a process of its own that SIGKILL ends; its log is on disk whenever values have come over."""
    told = json.dumps([str(data), str(out), signal.SIGKILL, step, micro_batches, changes])
    done = subprocess.run(
        [sys.executable, "-c", KILLED, told],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


# ---- rows

OF_A_SEGMENT = {"config", "env", "continuity"}
"""Tables that tell of a segment and not of the training."""
MORE_WITH_A_STOP = {"checksums"}
"""Tables with rows for every save, and a training that stops saves once more."""
SAID_AGAIN = {"params", "coverage"}
"""Tables whose rows each segment writes again, the same each time."""
KINDS_OF_A_STOP = {"save", "resume", "interrupt", "probe_cadence"}
KINDS_SAID_AGAIN = {"fallback"}
"""Events that each segment begins with."""


Log = Mapping[str, list[Values]]
"""The raw rows of every table."""


def rows(run: Path, table: str) -> list[Values]:
    found: list[Values] = read_run(run).datasets[table].to_table().to_pylist()
    return found


def log_of(run: Path) -> Log:
    return {name: dataset.to_table().to_pylist() for name, dataset in read_run(run).datasets.items()}


def surviving(found: Sequence[Values], starts: Mapping[int, int]) -> list[Values]:
    """The rows that no later segment has begun before; `starts` is the first step of each segment."""

    def survives(row: Values) -> bool:
        later = [start for number, start in starts.items() if number > row["segment"]]
        return all(row["step"] <= start for start in later)

    return [row for row in found if "step" not in row or survives(row)]


def told(found: Log, table: str, starts: Mapping[int, int]) -> list[tuple[tuple[str, str], ...]]:
    """What the surviving rows say, but for clocks, memory and segments."""
    said = []
    for row in surviving(found[table], starts):
        if table == "events" and (row["kind"] in KINDS_OF_A_STOP or _is_said_again(row)):
            continue
        kept = {key: value for key, value in row.items() if not _is_of_the_moment(key)}
        said.append(tuple((key, repr(value)) for key, value in sorted(kept.items())))
    return sorted(set(said) if table in SAID_AGAIN else said)


def _is_said_again(event: Values) -> bool:
    return event["kind"] in KINDS_SAID_AGAIN and event["segment"] > 0


def _is_of_the_moment(column: str) -> bool:
    return column in ("segment", "time", "memory_bytes", "rss_bytes") or column.endswith("seconds")


def statuses(run: Path, segment: int | None = None) -> dict[tuple[str, str | None, str], str]:
    """The `continuity` table of a segment, the last one if none is given."""
    found = rows(run, "continuity")
    wanted = max((row["segment"] for row in found), default=0) if segment is None else segment
    return {(row["item"], row["param"], row["key"]): row["status"] for row in found if row["segment"] == wanted}


def odd(run: Path, segment: int | None = None) -> dict[tuple[str, str | None, str], str]:
    """What of it does not match."""
    return {name: status for name, status in statuses(run, segment).items() if status != "match"}


def warnings(run: Path, segment: int) -> list[str]:
    events = [row for row in rows(run, "events") if row["kind"] == "warning" and row["segment"] == segment]
    return [json.loads(event["detail"])["message"] for event in events]


# ---- the comparison


CLOCKS = ("ss_training_started_at", "ss_training_finished_at")


def contents(checkpoint: Path) -> dict[str, Any]:
    """Every file of a checkpoint: tensors bit by bit, JSON but for the run's id, the rest by its bytes; no clocks."""
    found: dict[str, Any] = {}
    for path in sorted(checkpoint.rglob("*")):
        name = str(path.relative_to(checkpoint))
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                found |= {f"{name} {key}": bits(file.get_tensor(key)) for key in file.keys()}  # noqa: SIM118
                header = {key: value for key, value in (file.metadata() or {}).items() if key not in CLOCKS}
                found |= {f"{name} header {key}": value for key, value in header.items()}
        elif path.suffix == ".json" and path.parent.name == "state":
            value = json.loads(path.read_text(encoding="utf-8"))
            found[name] = {**value, "run": None} if path.stem == "training" else value
        elif path.suffix == ".parquet":
            # What was read back has its keys in the order of the file's header.
            found[name] = sorted(map(repr, read_fingerprint(checkpoint) or []))
        elif path.is_file():
            found[name] = path.read_bytes()
    return found


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return [key for key in one.keys() | other.keys() if one.get(key) != other.get(key)]


def log_differences(straight: Path, resumed: Path) -> dict[str, list[Any]]:
    """Up to three rows that only one of two logs has, by table."""
    (one, other), found = (log_of(run) for run in (straight, resumed)), {}
    starts = {segment["number"]: segment["start_step"] for segment in RunDir(resumed).read()["segments"]}
    for table in TABLES.keys() - OF_A_SEGMENT:
        wanted, there = told(one, table, {}), told(other, table, starts)
        if table in MORE_WITH_A_STOP:
            there = [row for row in there if row in set(wanted)]
        if wanted != there:
            found[table] = [(len(wanted), len(there)), *sorted(set(wanted) ^ set(there))[:3]]
    return found


def pictures(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.glob("samples/*.png")}


def assert_same_training(straight: Trained, resumed: Trained) -> None:
    """The interrupted training ended exactly where the other one did, and its log tells the same."""
    one, other = straight.bits(), resumed.bits()
    assert not differences(one, other), differences(one, other)[:8]
    assert not log_differences(straight.run, resumed.run), log_differences(straight.run, resumed.run)
    assert not differences(pictures(straight.run), pictures(resumed.run))
    (a, b) = (whole_checkpoints(RunDir(run))[-1] for run in (straight.run, resumed.run))
    assert a.name == b.name
    left, right = contents(a), contents(b)
    assert not differences(left, right), differences(left, right)[:8]


def assert_continued(run: Path) -> None:
    """Every resume began exactly where its checkpoint was saved, and the log says so."""
    segments = len(RunDir(run).read()["segments"])
    assert segments > 1
    for number in range(1, segments):
        found = statuses(run, number)
        assert len(found) > 50
        assert set(found.values()) == {"match"}, odd(run, number)
