"""`trainscope sql`: ask a run's tables directly, in the sandbox that rules run in."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from trainscope.errors import ConfigError

FORMATS = ("table", "csv", "json")
SHOWN = 1000
"""Rows that a table on the console has at most; csv and json have all."""


def sql(
    run: Annotated[Path, typer.Argument(help="A run directory.", metavar="RUN")],
    query: Annotated[str, typer.Argument(help="One SELECT; tables are named as in the documentation.")],
    form: Annotated[
        str, typer.Option("--format", help="table, csv, or json (an object a line, non-finite numbers as text).")
    ] = "table",
) -> None:
    """Run one SELECT over a run's tables: `tensors` is the surviving history, `tensors_all` every row ever written."""
    from trainscope.engine.runs import source_of
    from trainscope.engine.sandbox import stream_query
    from trainscope.runlog.reader import read_run

    if form not in FORMATS:
        raise ConfigError(f"--format {form}: allowed are {', '.join(FORMATS)}")
    with stream_query(source_of(read_run(run)), query) as (columns, rows):
        if form == "table":
            _show(columns, rows)
        elif form == "csv":
            writer = csv.writer(sys.stdout, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows(rows)
        else:
            for row in rows:
                print(json.dumps(dict(zip(columns, map(_finite, row), strict=True)), ensure_ascii=False))


def _show(columns: list[str], rows: Iterator[tuple[Any, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(Text(column))
    for row in islice(rows, SHOWN):
        table.add_row(*(Text("" if value is None else str(value)) for value in row))
    Console().print(table)
    if next(rows, None) is not None:
        typer.echo(f"the first {SHOWN} rows; --format csv shows all", err=True)


def _finite(value: Any) -> Any:
    return str(value) if isinstance(value, float) and value - value != 0 else value
