"""The beginning and the end of a segment in the run directory: what it ran with, where it went, how it ended.

Knows nothing of the loop.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trainscope.runlog.fingerprint import FILE
from trainscope.runlog.rundir import RunDir, write_atomically, write_json
from trainscope.runlog.writer import RecordError, RunWriter
from trainscope.trainer.environment import environment
from trainscope.trainer.recorder import Recorder
from trainscope.trainer.session import Session


def next_segment(run: RunDir) -> int:
    """The number of a segment that is about to begin."""
    return max((int(segment["number"]) for segment in run.read()["segments"]), default=-1) + 1


def begin_segment(
    session: Session, run: RunDir, writer: RunWriter, number: int, *, start_step: int, checkpoint: Path | None
) -> None:
    """Write what the segment runs with, before its first step. `checkpoint` is what it goes on from."""
    resolved = session.resolved
    folder = run.segment(number)
    shutil.rmtree(folder, ignore_errors=True)  # of a segment that was killed before it was one
    folder.mkdir(parents=True)
    rows = resolved.rows()
    facts = environment(session.device)
    write_atomically(folder / "config.toml", resolved.text.encode())
    write_json(
        folder / "config.resolved.json",
        {
            "path": str(resolved.path.resolve()) if resolved.path else None,
            "keys": [{"key": key, "value": _finite(value), "origin": origin} for key, value, origin in rows],
        },
    )
    write_json(folder / "env.json", facts)
    if checkpoint is not None and (checkpoint / FILE).exists():
        write_atomically(folder / FILE, (checkpoint / FILE).read_bytes())
    for key, value, origin in rows:
        writer.add_row("config", key=key, value=_as_text(value), origin=origin)
    for key, value in facts.items():
        writer.add_row("env", key=key, value=value, origin="trainscope")
    if number == 0:
        for row in session.data.rows():
            writer.add_row("data", **row)
    segment = {"number": number, "start_step": start_step, "started": _now()}
    if checkpoint is not None:
        inside = checkpoint.is_relative_to(run.path)
        segment["resumed_from"] = str(checkpoint.relative_to(run.path) if inside else checkpoint.resolve())
    run.update(
        status="running",
        segments=[*run.read()["segments"], segment],
        steps=session.plan.steps,
        method=session.config.train.method,
        base=session.config.model.base,
    )


def finish_segment(run: RunDir, status: str, session: Session) -> None:
    segments = run.read()["segments"]
    for segment in segments[-1:]:  # none, where the very beginning failed
        segment.update(ended=_now(), end_step=session.step)
    run.update(status=status, segments=segments)


def record_crash(
    run: RunDir, writer: RunWriter, recorder: Recorder | None, session: Session, error: BaseException
) -> None:
    """Save what was measured. The disk or the device may be what failed: then as much as they give."""
    with contextlib.suppress(Exception):  # what went wrong already is told, not what goes wrong now
        if recorder is not None:
            recorder.drain()
    with contextlib.suppress(OSError, RecordError):
        writer.add_row(
            "events",
            step=session.step,
            time=datetime.now(UTC).timestamp(),
            kind="crash",
            detail=json.dumps({"error": type(error).__name__, "message": str(error)[:500]}),
        )
        writer.flush()
    if session.processes.is_main:
        with contextlib.suppress(OSError):
            finish_segment(run, "crashed", session)


def _as_text(value: Any) -> str | None:
    """The text form of the `config` table: text as it is, everything else as JSON."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(_finite(value))


def _finite(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
