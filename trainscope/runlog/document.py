"""The documentation of the tables, made from their schema: `python -m trainscope.runlog.document > docs/tables.md`."""

from __future__ import annotations

import pyarrow as pa

from trainscope.runlog.tables import FLAG, INT, REAL, SMALL_REAL, TABLES, TEXT, Table

TYPES: dict[pa.DataType, str] = {
    INT: "integer",
    REAL: "float64",
    SMALL_REAL: "float32",
    TEXT: "text",
    FLAG: "true or false",
}
HEAD = """\
# The tables of a run

Made from `trainscope/runlog/tables.py` by `python -m trainscope.runlog.document`; do not edit.

Each lies in `log/<table>/` of a run as Parquet files. `trainscope sql RUN "SELECT …"` and rules see the surviving
history under the table's name (for each step and process the last segment wins) and the raw rows as `<table>_all`;
`trainscope.read_run(RUN).tables["tensors"]` is a pandas DataFrame. A column that is not there says why in `coverage`.

θ is a stored weight, θ₀ its value when the run began, g its gradient, Δ the update that the optimizer's formula asks
for in float32, m and v the first and second moment, v̂ the second without its bias.
"""


def markdown() -> str:
    """All tables, one after the other."""
    return "\n".join([HEAD, *map(_section, TABLES.values())])


def _section(table: Table) -> str:
    rows = [
        f"| `{c.name}` | {TYPES[c.type]} | {c.unit} | {c.meaning.replace('|', chr(92) + '|')} |" for c in table.columns
    ]
    head = ["| column | type | unit | meaning |", "|---|---|---|---|"]
    return "\n".join([f"## {table.name}", "", f"A row is {table.row}.", "", *head, *rows, ""])


if __name__ == "__main__":
    print(markdown(), end="")
