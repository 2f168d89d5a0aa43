"""What this machine has: memory where the training is going to lie, and room on its disk. Asked without torch.

Knows nothing of configurations beside the names of devices and folders.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
CGROUP_LIMITS = ("memory.max", "memory/memory.limit_in_bytes")
"""Files of a container's limit, of cgroups 2 and 1."""
_SECONDS = 10.0


def computer_memory() -> int | None:
    """Bytes that a process here may have: those of the computer, of its container, or of `ulimit`; None if not told."""
    return min(_memory_limits(), default=None)


def _memory_limits() -> Iterator[int]:
    with contextlib.suppress(AttributeError, ValueError, OSError):  # not on every system
        yield os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for name in CGROUP_LIMITS:
        try:
            yield int((CGROUP / name).read_text())
        except (OSError, ValueError):  # not this kind of cgroup; "max"
            continue
    try:
        import resource
    except ImportError:
        return
    for kind in (resource.RLIMIT_DATA, resource.RLIMIT_AS):
        if (limit := resource.getrlimit(kind)[0]) != resource.RLIM_INFINITY:
            yield limit


def gpu_memory(device: str) -> int | None:
    """Bytes of the GPU that `run.device` names, as nvidia-smi tells it; None where there is none, or nobody tells.

    `auto` and `cuda` are the first one. CUDA_VISIBLE_DEVICES chooses among them.
    """
    kind, _, number = device.partition(":")
    if kind not in ("auto", "cuda"):
        return None
    try:
        asked = subprocess.run(
            ["nvidia-smi", "--query-gpu=index,uuid,memory.total", "--format=csv,noheader,nounits"],  # noqa: S607
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    told = [[cell.strip() for cell in line.split(",")] for line in asked.stdout.splitlines()]
    found = [(index, uuid, int(mib) * 2**20) for index, uuid, mib in told if mib.isdigit()]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = [name.strip() for name in visible.split(",")]
        by_name = {name: gpu for gpu in found for name in gpu[:2]}
        found = [by_name[name] for name in names if name in by_name]
    place = int(number) if number.isdigit() else 0
    return found[place][2] if place < len(found) else None


def free_disk(folder: Path) -> int | None:
    """Bytes that are free where `folder` is or is going to be; None if the disk does not tell."""
    try:
        there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        return shutil.disk_usage(there).free
    except OSError:
        return None
