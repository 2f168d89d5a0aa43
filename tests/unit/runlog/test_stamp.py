"""Any flipped bit of a stamped file is found, but for those of the stamp's own name."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainscope.runlog.stamp import MAGIC, check_stamp, stamped


def plain() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"step": [1, 2, 3], "loss": [0.5, None, 0.25]}), sink, compression="zstd")
    return bytes(sink.getvalue())


def read(content: bytes) -> pa.Table:
    check_stamp(memoryview(content))
    return pq.read_table(pa.BufferReader(content))


def test_a_stamped_file_reads_as_before() -> None:
    whole = stamped(memoryview(plain()))
    assert read(whole).equals(pq.read_table(pa.BufferReader(plain())))


def test_every_flipped_bit_is_found() -> None:
    whole = stamped(memoryview(plain()))
    name = whole.index(MAGIC)
    for place in range(len(whole)):
        for bit in range(8):
            broken = bytearray(whole)
            broken[place] ^= 1 << bit
            if name <= place < name + len(MAGIC):
                assert pq.read_table(pa.BufferReader(bytes(broken))).num_rows == 3
                continue
            with pytest.raises((ValueError, OSError, pa.ArrowException)):
                read(bytes(broken))


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1PAR1", bytes(100), b"\xff" * 100])
def test_what_is_no_parquet_is_left_to_its_reader(content: bytes) -> None:
    check_stamp(memoryview(content))


def test_a_file_without_a_stamp_is_left_alone() -> None:
    check_stamp(memoryview(plain()))
