"""What a disk holds of a run log if the machine stops after any call of its writer.

    python -m tests.integration.log_replay <folder> <flushes>

Checks what each crash leaves, and prints what was done as JSON.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa

from tests.integration.log_workload import EVERY, TABLES, add_step, check, new_run, read, unharmed
from trainscope.errors import RunError
from trainscope.runlog.writer import RunWriter


@dataclass
class File:
    data: bytes = b""
    durable: bytes = b""


@dataclass
class Folder:
    entries: dict[str, Node] = field(default_factory=dict)
    durable: dict[str, Node] = field(default_factory=dict)


Node = File | Folder


class Disk:
    """What a disk holds of a folder, call by call: only what was synced is durable, a name only with its folder."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.root = Folder()

    def _folder(self, path: Path) -> Folder:
        here = self.root
        for part in path.relative_to(self.top).parts:
            below = here.entries[part]
            assert isinstance(below, Folder)
            here = below
        return here

    def apply(self, call: str, path: Path, value: Any) -> None:
        if call == "sync" and value is None:
            folder = self._folder(path)
            folder.durable = dict(folder.entries)
        elif call == "sync":
            value.durable = value.data
        elif call == "write":
            value[0].data += value[1]
        elif call == "rename":
            entries = self._folder(path.parent).entries
            self._folder(value.parent).entries[value.name] = entries.pop(path.name)
        elif call == "unlink":
            del self._folder(path.parent).entries[path.name]
        else:
            self._folder(path.parent).entries[path.name] = value

    def after_a_crash(self, *, names: bool, data: bool) -> dict[str, bytes | None]:
        """Files and folders (None) by path, with or without the names and the data that were not synced."""
        found: dict[str, bytes | None] = {}

        def visit(folder: Folder, at: str) -> None:
            for name, node in (folder.entries if names else folder.durable).items():
                path = f"{at}{name}"
                if isinstance(node, Folder):
                    found[path] = None
                    visit(node, f"{path}/")
                else:
                    found[path] = node.data if data else node.durable

        visit(self.root, "")
        return found


Call = tuple[str, Path, Any]
KEPT = [(names, data) for names in (False, True) for data in (False, True)]
"""Of what was not synced, a crash may keep names, data, both or neither."""


@contextmanager
def recorded(top: Path) -> Iterator[list[Call]]:
    """All calls below a folder that change it, in their order."""
    calls: list[Call] = []
    open_files: dict[int, tuple[Path, File | None]] = {}
    real = {name: getattr(os, name) for name in ("open", "close", "write", "fsync", "rename", "mkdir", "unlink")}

    def opened(path: Any, flags: int, *more: Any, **options: Any) -> int:
        number: int = real["open"](path, flags, *more, **options)
        if Path(path).is_relative_to(top):
            made = File() if flags & os.O_CREAT else None
            open_files[number] = (Path(path), made)
            if made is not None:
                calls.append(("make", Path(path), made))
        return number

    def closed(number: int) -> None:
        open_files.pop(number, None)
        real["close"](number)

    def wrote(number: int, data: Any) -> int:
        count: int = real["write"](number, data)
        if number in open_files:
            path, file = open_files[number]
            calls.append(("write", path, (file, bytes(data[:count]))))
        return count

    def synced(number: int) -> None:
        real["fsync"](number)
        if number in open_files:
            calls.append(("sync", *open_files[number]))

    def renamed(old: Any, new: Any) -> None:
        real["rename"](old, new)
        calls.append(("rename", Path(old), Path(new)))

    def mkdir(path: Any, *more: Any) -> None:
        real["mkdir"](path, *more)
        if Path(path).is_relative_to(top):
            calls.append(("make", Path(path), Folder()))

    def unlinked(path: Any) -> None:
        real["unlink"](path)
        calls.append(("unlink", Path(path), None))

    fakes = {"open": opened, "close": closed, "write": wrote, "fsync": synced, "rename": renamed, "mkdir": mkdir}
    with mock.patch.multiple(os, **fakes, unlink=unlinked):
        yield calls


def replay(folder: Path, flushes: int) -> dict[str, Any]:
    """Record a writer's calls, and read what is left if the machine stops after each of them."""
    top = folder / "disk"
    top.mkdir()
    marks: list[tuple[int, int, int]] = []
    """Calls so far, steps that were added, steps that are durable."""
    with recorded(top) as calls:
        run = new_run(top / "runs" / "mine")
        made = len(calls)
        writer = RunWriter(run, flush_seconds=1000.0)
        for step in range(1, flushes * EVERY + 1):
            add_step(writer, step)
            marks.append((len(calls), step, marks[-1][2] if marks else 0))
            if step % EVERY == 0:
                assert writer.flush()
                marks.append((len(calls), step, step))
        writer.close()
    twin = unharmed(folder / "twin", flushes * EVERY)
    assert all(read(run.path)[table].equals(twin[table]) for table in TABLES)

    disk, seen, crashes, most_lost = Disk(top), dict[bytes, int](), 0, 0
    for number in range(len(calls) + 1):
        if number:
            disk.apply(*calls[number - 1])
        # What was said to be durable before the crash; what was added before the next call came.
        durable_step = max((step for count, _, step in marks if count <= number), default=0)
        added = max((step for count, step, _ in marks if count <= number), default=0)
        for names, data in KEPT:
            crashes += 1
            left = disk.after_a_crash(names=names, data=data)
            key = repr(sorted(left.items())).encode()
            if key not in seen:
                seen[key] = _last_step(folder / "crashed", left, twin, must_be_a_run=number >= made)
            last = seen[key]
            assert durable_step <= last, f"after call {number}: ends at {last}, and {durable_step} was durable"
            most_lost = max(most_lost, added - last)
    assert most_lost <= EVERY
    told = {"calls": len(calls), "crashes": crashes, "states": len(seen)}
    return {**told, "flush_every_steps": EVERY, "most_steps_lost": most_lost}


def _last_step(folder: Path, left: dict[str, bytes | None], twin: dict[str, pa.Table], *, must_be_a_run: bool) -> int:
    """Put what is left into a folder and read it; 0 as long as there is no run."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, data in left.items():
        if data is None:
            (folder / name).mkdir()
        else:
            (folder / name).write_bytes(data)
    try:
        found = read(folder / "runs" / "mine")
    except RunError as error:
        if not must_be_a_run and ("no such run" in str(error) or "not a run directory" in str(error)):
            return 0
        raise
    return check(found, twin, durable_step=0, added=10**9)


if __name__ == "__main__":
    print(json.dumps(replay(Path(sys.argv[1]), int(sys.argv[2]))))
