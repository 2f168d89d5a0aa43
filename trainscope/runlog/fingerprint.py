"""fingerprint.parquet: the digests that a checkpoint was saved with.

Knows columns, not what they are of; never imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trainscope.errors import RunError

FILE = "fingerprint.parquet"
SCHEMA = pa.schema(
    [
        ("item", pa.string()),
        ("param", pa.string()),
        ("key", pa.string()),
        ("dtype", pa.string()),
        ("shape", pa.string()),
        ("value", pa.string()),
        ("zero", pa.bool_()),
    ]
)


def write_fingerprint(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write `folder`/fingerprint.parquet. Not atomic: the folder is made beside and renamed."""
    columns = {name: [row[name] for row in rows] for name in SCHEMA.names}
    pq.write_table(pa.table(columns, schema=SCHEMA), folder / FILE, compression="zstd", write_page_checksum=True)


def read_fingerprint(folder: Path) -> list[dict[str, Any]] | None:
    """The rows, or None if there is no such file. Raises `RunError` if it does not read."""
    path = folder / FILE
    if not path.exists():
        return None
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read()
            if not table.schema.equals(SCHEMA):
                raise ValueError("it has other columns")
            rows: list[dict[str, Any]] = table.to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunError(
            f"{path} is damaged: {reason}", hint="remove it to resume without an audit of the state"
        ) from error
    return rows
