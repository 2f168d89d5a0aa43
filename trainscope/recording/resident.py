"""Memory that the process holds, at a cost that every step can bear: the file in which Linux tells it stays open."""

from __future__ import annotations

import os
from collections.abc import Callable

import psutil

STATM = "/proc/self/statm"


def resident_memory() -> Callable[[], int]:
    """A function that says how many bytes are resident in memory, of the process that asked for it."""
    process = psutil.Process()
    try:
        file, page = os.open(STATM, os.O_RDONLY | os.O_CLOEXEC), os.sysconf("SC_PAGESIZE")
    except (OSError, AttributeError, ValueError):  # not Linux
        return lambda: int(process.memory_info().rss)
    return lambda: int(os.pread(file, 64, 0).split()[1]) * page
