"""`trainscope sql`: ask a run's tables directly, in the sandbox that rules run in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def sql(
    run: Annotated[Path, typer.Argument(help="A run directory.", metavar="RUN")],
    query: Annotated[str, typer.Argument(help="One SELECT; tables are named as in the documentation.")],
) -> None:
    """Run one SELECT over a run's tables."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from trainscope.engine.runs import source_of
    from trainscope.engine.sandbox import run_query
    from trainscope.runlog.reader import read_run

    columns, rows = run_query(source_of(read_run(run)), query)
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(Text(column))
    for row in rows:
        table.add_row(*(Text("" if value is None else str(value)) for value in row))
    Console().print(table)
