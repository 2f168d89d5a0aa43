"""Where a run's checkpoints lie and which of them count.

A checkpoint is made beside and renamed, so one that has its name is whole. Knows nothing of what is in it.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainscope.runlog.durable import sync_folder
from trainscope.runlog.rundir import RunDir

NAME = re.compile(r"step-(\d{8,})(?:-micro-(\d{5,}))?")
LORA_FILE = "pytorch_lora_weights.safetensors"


def checkpoint_name(step: int, micro_batches: int = 0) -> str:
    """The folder's name after `step` optimizer steps and, stopped amid the next one, some of its micro-batches.

    Names sort by time.
    """
    return f"step-{step:08d}" + (f"-micro-{micro_batches:05d}" if micro_batches else "")


def weights_path(checkpoint: Path, method: str, which: str = "raw") -> Path:
    """What diffusers loads of a checkpoint: a LoRA file, or a pipeline's folder."""
    folder = checkpoint / ("weights" if which == "raw" else "weights-ema")
    return folder / LORA_FILE if method == "lora" else folder


def kohya_file(run: str, step: int, which: str = "raw") -> str:
    """The name of a LoRA in kohya's layout: one that tells it from others in a folder of many.

    It never ends in the name of diffusers' file, which `load_lora_weights(folder)` must find alone.
    """
    return f"{run}-step{step:08d}{'' if which == 'raw' else '-ema'}.safetensors"


def whole_checkpoints(run: RunDir) -> list[Path]:
    """The checkpoints of a run, the oldest first."""
    found = [path for path in run.checkpoints.glob("step-*") if NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: _moment(path.name))


def _moment(name: str) -> tuple[int, int]:
    match = NAME.fullmatch(name)
    assert match is not None  # noqa: S101  callers filter by it
    return int(match[1]), int(match[2] or 0)


@contextmanager
def made_beside(folder: Path) -> Iterator[Path]:
    """A temporary folder that becomes `folder`, durably, when everything in it is written; on an error it goes."""
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        beside.mkdir()
        yield beside
        _sync_tree(beside)
        beside.rename(folder)
    except BaseException:
        # Half a checkpoint is of no use, and on a full disk it takes the room that the log still needs.
        shutil.rmtree(beside, ignore_errors=True)
        raise
    sync_folder(folder.parent)


def prune(run: RunDir, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints (0 keeps all). Call it when the newest is durable."""
    for old in whole_checkpoints(run)[:-keep] if keep else []:
        # Renamed first: a run killed in the middle of deleting would leave a checkpoint that only looks whole.
        doomed = old.rename(old.with_name(f".{old.name}.{os.getpid()}.tmp"))
        shutil.rmtree(doomed)


def set_aside(run: RunDir, after: Path, segment: int) -> None:
    """Move what a resume from `after` supersedes (later checkpoints and samples) to a folder of their own.

    The history that they belong to is not lost, and what the new one saves under the same names overwrites nothing.
    Remains of saves that a killed process left are removed.
    """
    for remains in run.checkpoints.glob(".step-*.tmp"):
        shutil.rmtree(remains, ignore_errors=True)
    later = [path for path in whole_checkpoints(run) if _moment(path.name) > _moment(after.name)]
    _move(later, run.checkpoints / f"superseded-by-segment-{segment}")
    step = _moment(after.name)[0]
    pictures = [path for path in run.samples.glob("step-*.png") if _sample_step(path.name) > step]
    _move(sorted(pictures), run.samples / f"superseded-by-segment-{segment}")


def _sample_step(name: str) -> int:
    digits = name.split("-")[1]
    return int(digits) if digits.isdigit() else -1


def _move(paths: list[Path], folder: Path) -> None:
    if not paths:
        return
    folder.mkdir(exist_ok=True)
    for path in paths:
        path.rename(folder / path.name)


def _sync_tree(folder: Path) -> None:
    for path in [folder, *folder.rglob("*")]:
        sync_folder(path)
