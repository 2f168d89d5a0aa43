"""A run's tables as pandas frames, each read when it is asked for.

Knows nothing of rules; imports pandas only when a frame is made.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from trainscope.errors import RunError
from trainscope.runlog.history import RAW_SUFFIX, last_steps
from trainscope.runlog.tables import TABLES

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow.dataset as ds


class UnknownTableError(RunError, KeyError):
    """A run has no such table."""

    __str__ = Exception.__str__  # a KeyError shows its message in quotes


class Frames(Mapping[str, "pd.DataFrame"]):
    """`frames["tensors"]` is a new frame of the table at every access; keep it in a variable.

    Whole numbers with gaps are floats, and truth values with gaps objects, as everywhere in pandas. A name that is no
    table raises `UnknownTableError`, a `KeyError`.
    """

    def __init__(self, open_table: Callable[[str], ds.Dataset], segment_starts: Sequence[int]) -> None:
        self._open = open_table
        self._starts = segment_starts

    def __getitem__(self, name: str) -> pd.DataFrame:
        table = name.removesuffix(RAW_SUFFIX) if isinstance(name, str) else name
        if table not in TABLES:
            raise UnknownTableError(_unknown(name), hint="list(run.tables) names them all")
        dataset = self._open(table)
        rows = dataset.to_table(filter=None if name != table else _surviving(dataset, self._starts))
        frame: pd.DataFrame = rows.to_pandas(split_blocks=True, self_destruct=True)
        return frame

    def __iter__(self) -> Iterator[str]:
        yield from TABLES
        yield from (name + RAW_SUFFIX for name in TABLES)

    def __len__(self) -> int:
        return 2 * len(TABLES)

    def __repr__(self) -> str:
        return f"<tables {', '.join(TABLES)}; with {RAW_SUFFIX} behind the name every row that was ever written>"


def _surviving(dataset: ds.Dataset, segment_starts: Sequence[int]) -> ds.Expression | None:
    """What the rows of the history fulfil, as in the engine's views; None: all of them do."""
    import pyarrow.compute as pc

    names = dataset.schema.names
    if "segment" not in names:
        return None
    segment = pc.field("segment")
    if "step" not in names:
        last = pc.max(dataset.to_table(columns=["segment"])["segment"])
        return segment == last if last.is_valid else None
    superseded = [
        (segment == number) & (pc.field("step") > last)
        for number, last in enumerate(last_steps(segment_starts))
        if last is not None
    ]
    if not superseded:
        return None
    # The conditions are balanced, since each nests one level deeper than the one before.
    while len(superseded) > 1:
        pairs = [superseded[at : at + 2] for at in range(0, len(superseded), 2)]
        superseded = [pair[0] | pair[1] if len(pair) == 2 else pair[0] for pair in pairs]
    # A NULL step (something that happened outside of any step) is superseded by nothing.
    return ~pc.coalesce(superseded[0], pc.scalar(False))


def _unknown(name: object) -> str:
    near = difflib.get_close_matches(str(name), [*TABLES, *(table + RAW_SUFFIX for table in TABLES)], n=3)
    return f"no table {name}{'; did you mean ' + ' or '.join(near) + '?' if near else ''}"
