"""The surviving history as SQL: what is left of a table once a resume has superseded some of its rows.

Pure text; knows nothing of connections.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from trainscope.runlog.history import RAW_SUFFIX, last_steps


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
    ends = last_steps(segment_starts)
    if all(end is None for end in ends):
        return every
    # A list that is looked into costs the same for any number of segments. What lies outside of it, as what has no end
    # and a NULL step (something that happened outside of any step), is superseded by nothing.
    listed = ", ".join("NULL" if end is None else str(int(end)) for end in ends)
    return f"{every} WHERE (step > list_extract([{listed}]::BIGINT[], segment + 1)) IS NOT TRUE"
