"""Nothing that was flushed is ever lost: killed writers, and every moment at which a machine may stop.

The work is done without torch by `log_kills` and `log_replay`, in processes of their own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration.commands import ENVIRONMENT, ROOT


def harness(what: str, folder: Path, number: int) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", f"tests.integration.log_{what}", str(folder), str(number)],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    ("number", "after_flush", "between"),
    [pytest.param(16, 8, 3, id="16"), pytest.param(200, 100, 30, id="200", marks=pytest.mark.slow)],
)
def test_killed_writers(number: int, after_flush: int, between: int, tmp_path: Path) -> None:
    """Many while a file was open and not yet renamed; every log is the beginning of its twin's."""
    found = harness("kills", tmp_path, number)
    assert found["kills"] == number
    assert found["after_first_flush"] >= after_flush
    assert found["between_open_and_rename"] >= between
    assert found["most_steps_lost_where_it_waits"] <= found["flush_every_steps"]


@pytest.mark.parametrize("flushes", [3, pytest.param(25, marks=pytest.mark.slow)])
def test_a_machine_that_stops_after_any_call(flushes: int, tmp_path: Path) -> None:
    """With and without the names and the data that were not synced by then."""
    found = harness("replay", tmp_path, flushes)
    assert found["calls"] >= 15 * flushes  # three tables; a file takes five calls
    assert found["states"] >= 6 * flushes
    assert found["most_steps_lost"] <= found["flush_every_steps"]
