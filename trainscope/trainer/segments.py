"""The beginning and the end of a segment in the run directory: what it ran with, where it went, how it ended.

Knows nothing of the loop.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

from trainscope.recording.description import now, record_facts, record_keys, write_description
from trainscope.recording.environment import environment
from trainscope.runlog.durable import make_folder, write_atomically
from trainscope.runlog.fingerprint import FILE
from trainscope.runlog.rundir import RunDir
from trainscope.runlog.tables import TABLES
from trainscope.runlog.writer import RecordError, RunWriter
from trainscope.schema import Record
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
    make_folder(folder)
    rows = resolved.rows()
    facts = environment(session.device)
    write_description(folder, text=resolved.text, path=resolved.path, keys=rows, facts=facts)
    if checkpoint is not None and (checkpoint / FILE).exists():
        write_atomically(folder / FILE, (checkpoint / FILE).read_bytes())
    segment = {"number": number, "start_step": start_step, "started": now()}
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
    # Now that the segment has its number: rows may be written at any time.
    record_keys(writer, rows)
    record_facts(writer, facts)
    if number == 0:
        data = list(session.data.rows())
        names = [column.name for column in TABLES["data"].columns]
        writer.add(Record("data", {name: [row.get(name) for row in data] for name in names}))


def finish_segment(run: RunDir, status: str, session: Session) -> None:
    segments = run.read()["segments"]
    for segment in segments[-1:]:  # none, where the very beginning failed
        segment.update(ended=now(), end_step=session.step)
    run.update(status=status, segments=segments)


def record_crash(
    run: RunDir, writer: RunWriter, recorder: Recorder | None, session: Session, error: BaseException
) -> None:
    """Save what was measured. The disk or the device may be what failed: then as much as they give."""
    with contextlib.suppress(Exception):  # what went wrong already is told, not what goes wrong now
        if recorder is not None:
            recorder.log.drain()
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
