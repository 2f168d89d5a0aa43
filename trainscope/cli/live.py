"""Looks at a run while it trains: a process of its own, so that what it does is no part of the training.

    python -m trainscope.cli.live RUN

For each line that it reads it looks once, and writes what it found as a line of JSON. It ends with its input. Never
imports torch.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from trainscope.errors import TrainscopeError


def main(run: Path) -> None:
    """Answer line by line. `cpu_seconds` counts from the start of the process or the answer before."""
    # Ctrl-C reaches everybody in the terminal: it is the training that decides what becomes of it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "nice"):
        os.nice(10)
    before = 0.0
    for _ in sys.stdin:
        answer: dict[str, Any]
        try:
            answer = {"findings": look_at(run)}
        except TrainscopeError as error:
            answer = {"error": str(error)}
        now = time.process_time()
        print(json.dumps({**answer, "cpu_seconds": now - before}), flush=True)
        before = now


def look_at(path: Path) -> list[dict[str, str]]:
    """The findings of a run directory so far."""
    from trainscope.cli.auditing import thresholds_of
    from trainscope.engine.live import look
    from trainscope.engine.loader import load_rules
    from trainscope.engine.runs import source_of
    from trainscope.runlog.reader import read_run

    run = read_run(path)
    rules, _ = load_rules()
    return [
        {
            "code": finding.code,
            "name": finding.name,
            "severity": finding.severity,
            "message": finding.message,
            "remedy": finding.remedies[0].title if finding.remedies else "",
        }
        for finding in look(source_of(run), rules, thresholds_of(run.config_rows()))
    ]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
