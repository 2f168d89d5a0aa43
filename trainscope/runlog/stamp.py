"""A checksum within a Parquet file, over all of it: Parquet's own are of the pages, and not of what describes them.

It stands between the last page and the footer, where no reader of Parquet looks. Knows nothing of tables.
"""

from __future__ import annotations

import zlib

MAGIC = b"TSCRC32\0"
SIZE = len(MAGIC) + 4
_TAIL = 8
"""Bytes behind the footer: its length, and PAR1."""


def stamped(parquet: memoryview) -> bytes:
    """The same file with its checksum (CRC-32)."""
    place = _footer(parquet)
    checksum = zlib.crc32(parquet[place:], zlib.crc32(parquet[:place]))
    return b"".join([parquet[:place], MAGIC, checksum.to_bytes(4, "little"), parquet[place:]])


def check_stamp(content: memoryview) -> None:
    """Raise `ValueError` if the file is not what was written. One without a checksum is left to Parquet's own."""
    place = _footer(content)
    if place < SIZE or content[place - SIZE : place - 4] != MAGIC:
        return
    found = zlib.crc32(content[place:], zlib.crc32(content[: place - SIZE]))
    if found != int.from_bytes(content[place - 4 : place], "little"):
        raise ValueError("its checksum is another one")


def _footer(parquet: memoryview) -> int:
    """Where the footer begins; outside of the file if its length is nonsense."""
    return len(parquet) - _TAIL - int.from_bytes(parquet[-_TAIL:-4], "little")
