"""Resident memory is what psutil says that it is, also where there is no /proc."""

from __future__ import annotations

import os

import psutil
import pytest

from trainscope.recording import resident

MIB = 2**20


@pytest.mark.parametrize("statm", [resident.STATM, "/nowhere/statm"])
def test_it_is_what_psutil_says(statm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "STATM", statm)
    held = resident.resident_memory()
    before = held()
    assert abs(before - psutil.Process().memory_info().rss) < 16 * MIB
    block = bytearray(os.urandom(256)) * (256 * 1024)  # 64 MiB, every page of them touched
    assert held() - before > 48 * MIB
    del block
