"""The surviving history as SQL: what is left of a table once a resume has superseded some of its rows.

Pure text; knows nothing of connections.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from trainscope.engine.query import RAW_SUFFIX


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def surviving_rows(table: str, columns: Collection[str], segment_starts: Sequence[int]) -> str:
    """The SELECT behind the view `table`.

    With step and segment: a row of segment s at step t survives unless a later segment started at a step before t.
    With segment alone (params, config, env): the rows of the last segment. Without either: all rows.
    """
    every = f"SELECT * FROM {quoted(table + RAW_SUFFIX)}"  # noqa: S608 (the names are ours)
    if "segment" not in columns:
        return every
    if "step" not in columns:
        return f"{every} WHERE segment IS NOT DISTINCT FROM (SELECT max(segment) FROM {quoted(table + RAW_SUFFIX)})"  # noqa: S608
    superseded = [
        f"(segment = {segment} AND step > {min(segment_starts[segment + 1 :])})"
        for segment in range(len(segment_starts) - 1)
    ]
    # A NULL step (something that happened outside of any step) is superseded by nothing.
    return f"{every} WHERE ({' OR '.join(superseded)}) IS NOT TRUE" if superseded else every
