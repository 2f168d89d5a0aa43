"""`trainscope sql`: every row in three formats, and a log that is larger than what a console shows."""

from __future__ import annotations

import csv
import io
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from trainscope.cli import app
from trainscope.cli.sql import SHOWN
from trainscope.runlog.rundir import create_run
from trainscope.runlog.writer import RunWriter
from trainscope.schema import Record

ROWS = SHOWN + 500
Asked = Callable[..., tuple[int, str, str]]
"""Exit code, standard output and standard error of `trainscope sql RUN …`."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two segments; of the first, the last ten steps were superseded."""
    folder = tmp_path_factory.mktemp("sql") / "run"
    made = create_run(folder, "run", out=folder)
    starts = [0, 490]
    made.update(segments=[{"number": number, "start_step": start} for number, start in enumerate(starts)])
    for segment, steps in enumerate((range(1, 501), range(491, ROWS + 1))):
        writer = RunWriter(made, segment=segment)
        writer.add(Record("steps", {"step": list(steps), "loss": [math.nan if s == 2 else s / 2 for s in steps]}))
        writer.flush()
    return folder


def ask(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *args: object) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["trainscope", "sql", *map(str, args)])
    with pytest.raises(SystemExit) as stop:
        app.main()
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


@pytest.fixture
def asked(run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Asked:
    return lambda *args: ask(capsys, monkeypatch, run, *args)


def test_a_table_shows_its_beginning_and_says_so(asked: Asked) -> None:
    code, out, err = asked("SELECT step, loss FROM steps ORDER BY step")
    assert code == 0
    assert len(out.splitlines()) == SHOWN + 1
    assert err == f"the first {SHOWN} rows; --format csv shows all\n"
    assert asked("SELECT step FROM steps WHERE step < 4")[2] == ""


def test_csv_has_all_rows_and_an_empty_cell_for_null(asked: Asked) -> None:
    code, out, _ = asked("SELECT step, loss, grad_norm FROM steps ORDER BY step", "--format", "csv")
    header, *rows = csv.reader(io.StringIO(out))
    assert (code, header, len(rows)) == (0, ["step", "loss", "grad_norm"], ROWS)
    assert rows[:3] == [["1", "0.5", ""], ["2", "nan", ""], ["3", "1.5", ""]]


def test_json_is_an_object_a_line(asked: Asked) -> None:
    _, out, _ = asked("SELECT step, loss, grad_norm FROM steps ORDER BY step LIMIT 2", "--format", "json")
    rows = [json.loads(line, parse_constant=pytest.fail) for line in out.splitlines()]
    assert rows == [{"step": 1, "loss": 0.5, "grad_norm": None}, {"step": 2, "loss": "nan", "grad_norm": None}]


def test_raw_rows_and_summaries_are_there_too(asked: Asked) -> None:
    query = "SELECT (SELECT count(*) FROM steps), (SELECT count(*) FROM steps_all), (SELECT count(*) FROM tensor_steps)"
    assert asked(query, "--format", "csv")[1].splitlines()[1] == f"{ROWS},{ROWS + 10},0"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("SELECT * FROM step",), "did you mean steps?"),
        (("SELECT los FROM steps",), '"los" not found'),
        (("DELETE FROM steps",), "found DELETE"),
        (("SELECT * FROM steps WHERE step = $step",), "write values in place of $step"),
        (("SELECT CAST('x' AS INTEGER)",), "Conversion Error"),
        (("SELECT 1", "--format", "xml"), "allowed are table, csv, json"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(asked: Asked, args: tuple[str, ...], says: str) -> None:
    code, out, err = asked(*args)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert says in err
    assert "Traceback" not in err


@pytest.mark.parametrize("form", ["csv", "json"])
def test_a_reader_that_goes_away_ends_it(run: Path, form: str) -> None:
    """As `| head -2` does; a thousand times a thousand rows do not fit into a pipe."""
    query = "SELECT a.step, b.loss FROM steps AS a, steps AS b"
    command = [sys.executable, "-m", "trainscope", "sql", str(run), query, "--format", form]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read()
    assert "Traceback" not in errors
    assert process.returncode == app.OUTPUT_GONE
