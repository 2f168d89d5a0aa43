"""Killed or out of room at any moment of a save, a run still has a whole checkpoint, and goes on from it."""

from __future__ import annotations

import builtins
import errno
import io
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError

from tests.integration.commands import digest
from tests.integration.resuming import (
    BLIND,
    LORA,
    Values,
    assert_continued,
    contents,
    differences,
    resolved,
    trained,
)
from trainscope.errors import TrainingError
from trainscope.runlog.reader import read_run
from trainscope.runlog.rundir import RunDir, create_run
from trainscope.trainer.build import build_session
from trainscope.trainer.callbacks import Callback
from trainscope.trainer.checkpoints.folder import set_aside, whole_checkpoints
from trainscope.trainer.checkpoints.restore import check_shapes, restore
from trainscope.trainer.checkpoints.save import save_checkpoint
from trainscope.trainer.checkpoints.state import read_state
from trainscope.trainer.session import Session
from trainscope.trainer.witness import session_pieces

OLD, NEW = 3, 7
CASES: dict[str, Values] = {
    "lora": {**LORA, "lora.rank": 2, "ema.enabled": True, "checkpoint.keep": 1},
    "finetune": {"train.method": "finetune", "optimizer.type": "adamw-schedulefree", "checkpoint.keep": 1},
}
WRITING = {"mkdir", "open", "save_file", "write_table", "fsync", "rename", "replace", "chmod"}
"""Calls that a full disk can fail."""

Call = tuple[str, Path]


# ---- the harness


class Watched:
    """Everything that reaches the disk, call by call: recorded, and `before` is told first."""

    def __init__(self, before: Callable[[int, str, Path], None] = lambda number, name, path: None) -> None:
        self.calls: list[Call] = []
        self.before = before
        self._paths: dict[int, Path] = {}
        self._inside = False

    @contextmanager
    def __call__(self) -> Iterator[Watched]:
        with ExitStack() as patched:
            for name in ("rename", "replace", "mkdir", "unlink", "rmdir", "chmod"):
                patched.enter_context(mock.patch.object(os, name, self._by_path(name, getattr(os, name))))
            patched.enter_context(mock.patch.object(os, "fsync", self._fsync(os.fsync)))
            patched.enter_context(mock.patch.object(os, "open", self._os_open(os.open)))
            real = io.open
            patched.enter_context(mock.patch.object(io, "open", self._open(real)))
            patched.enter_context(mock.patch.object(builtins, "open", self._open(real)))
            files = safetensors.torch
            patched.enter_context(
                mock.patch.object(files, "serialize_file", self._file("save_file", files.serialize_file))
            )
            patched.enter_context(mock.patch.object(pq, "write_table", self._file("write_table", pq.write_table)))
            yield self

    def _tell(self, name: str, path: Path) -> None:
        if self._inside:  # of another call that is told already
            return
        self.calls.append((name, path))
        self.before(len(self.calls), name, path)

    def _path(self, path: Any, folder: int | None = None) -> Path:
        if isinstance(path, int):
            return self._paths[path]
        return self._paths[folder] / os.fsdecode(path) if folder is not None else Path(os.fsdecode(path)).absolute()

    def _by_path(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *args: Any, **options: Any) -> Any:
            self._tell(name, self._path(path, options.get("dir_fd")))
            return real(path, *args, **options)

        return call

    def _fsync(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(file: Any) -> Any:
            self._tell("fsync", self._path(file if isinstance(file, int) else file.fileno()))
            return real(file)

        return call

    def _os_open(self, real: Callable[..., int]) -> Callable[..., int]:
        def call(path: Any, flags: int, *args: Any, **options: Any) -> int:
            found = self._path(path, options.get("dir_fd"))
            if flags & (os.O_WRONLY | os.O_RDWR):
                self._tell("open", found)
            descriptor = real(path, flags, *args, **options)
            self._paths[descriptor] = found
            return descriptor

        return call

    def _open(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
            if set(mode) & set("wax+"):
                self._tell("open", self._path(path))
            file = real(path, mode, *args, **options)
            if not isinstance(path, int):
                self._paths[file.fileno()] = self._path(path)
            return file

        return call

    def _file(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(first: Any, path: Any, *args: Any, **options: Any) -> Any:
            if not isinstance(path, str | os.PathLike):  # a buffer in memory
                return real(first, path, *args, **options)
            self._tell(name, self._path(path))
            self._inside = True
            try:
                return real(first, path, *args, **options)
            finally:
                self._inside = False

        return call


@pytest.fixture(
    scope="module", params=[name if name == "lora" else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def session(request: pytest.FixtureRequest, few: Path) -> Session:
    """A session with state, made without a backward pass, after which torch would not let a process fork."""
    built = build_session(resolved(few, CASES[request.param]))
    for number in (OLD, NEW):
        for param in built.tensors:
            param.grad = torch.full_like(param, 0.01 * number)
        built.optimizer.step()
    built.optimizer.zero_grad()
    return built


@pytest.fixture(scope="module")
def other(session: Session) -> Session:
    """To put checkpoints back into."""
    return build_session(session.resolved)


def prepared(session: Session, folder: Path) -> RunDir:
    """A run with one checkpoint; the session is ready for the next."""
    folder.mkdir(parents=True)
    run = create_run(folder, "run", out=folder / "run")
    session.step = OLD
    save_checkpoint(session, run, list(session_pieces(session)))
    session.step = NEW
    return run


def save(session: Session, run: RunDir) -> Path:
    return save_checkpoint(session, run, list(session_pieces(session)))


def in_a_child(do: Callable[[], None]) -> int:
    """Do something in a fork of this process; its exit status, negative for a signal."""
    child = os.fork()
    if child == 0:
        try:
            do()
        except BaseException:
            os._exit(3)
        os._exit(0)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError("the child hangs")


@dataclass(frozen=True)
class Whole:
    """A save that nothing disturbed: its calls, and what it saved."""

    calls: list[Call]
    checkpoint: Path
    saved: dict[str, Any]

    @property
    def renamed(self) -> int:
        """The number of the call, from 1, that gave the new checkpoint its name."""
        (found,) = [number for number, call in enumerate(self.calls, start=1) if _is_the_rename(*call)]
        return found


@pytest.fixture(scope="module")
def whole(session: Session, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    run = prepared(session, tmp_path_factory.mktemp("whole") / "place")
    with Watched()() as watched:
        new = save(session, run)
    return Whole(watched.calls, new, contents(new))


def check_usable(session: Session, other: Session, checkpoint: Path) -> None:
    """It reads, and what was saved is what is put back."""
    state = read_state(checkpoint)
    assert state.weights is not None
    check_shapes(other, state, state.weights, [])
    other.optimizer.state.clear()
    restored = restore(other, state, state.weights, [])
    assert not restored.missing
    assert all(torch.equal(session.params[name], param) for name, param in other.params.items())
    assert other.step == state.training["step"]


# ---- killed


def test_killed_before_every_call(session: Session, other: Session, whole: Whole, tmp_path: Path) -> None:
    calls, renamed = whole.calls, whole.renamed
    assert len(calls) > 50
    before = prepared(session, tmp_path / "before").path
    old = digest(before / "checkpoints" / f"step-{OLD:08d}")
    for number in range(1, len(calls) + 2):
        run = RunDir(Path(shutil.copytree(before, tmp_path / "killed")))

        def killed(run: RunDir = run, number: int = number) -> None:
            with Watched(_killing(number))():
                save(session, run)

        ended = in_a_child(killed)
        assert ended == (-signal.SIGKILL if number <= len(calls) else 0), number
        found = whole_checkpoints(run)
        names = [path.name for path in found]
        assert names in (
            [[f"step-{OLD:08d}"]]
            if number <= renamed
            else [[f"step-{OLD:08d}", f"step-{NEW:08d}"], [f"step-{NEW:08d}"]]
        ), (number, names)
        for checkpoint in found:
            if checkpoint.name == f"step-{OLD:08d}":
                assert digest(checkpoint) == old, number
            else:
                assert not differences(contents(checkpoint), whole.saved), number
        check_usable(session, other, found[-1])
        set_aside(run, found[-1], 1)
        assert sorted(path.name for path in run.checkpoints.iterdir()) == names, number
        shutil.rmtree(run.path)
    assert ended == 0


def _is_the_rename(name: str, path: Path) -> bool:
    return name == "rename" and path.name.startswith(f".step-{NEW:08d}.")


def _killing(wanted: int) -> Callable[[int, str, Path], None]:
    def before(number: int, name: str, path: Path) -> None:
        if number != wanted:
            return
        if name in ("save_file", "write_table"):
            with mock.patch.object(Watched, "_tell"):
                path.write_bytes(b"the beginning of a file")
        os.kill(os.getpid(), signal.SIGKILL)

    return before


def test_the_old_goes_when_the_new_is_durable(whole: Whole) -> None:
    """Every file and folder is synced, then the rename, then the folder above: only then is the old one touched."""
    calls, new, renamed = whole.calls, whole.checkpoint, whole.renamed - 1
    beside = calls[renamed][1]
    parts = [new, *new.rglob("*")]
    assert len(parts) > 10
    for part in parts:
        path = beside / part.relative_to(new)
        synced = [number for number, call in enumerate(calls) if call == ("fsync", path)]
        assert synced, path
        assert synced[-1] < renamed, path
        # Nothing is written to it after that, and no entry of a folder is made or renamed.
        later = [call for call in calls[synced[-1] :] if call[1] == path and call[0] != "fsync"]
        assert later == ([("rename", beside)] if path == beside else []), later
        if part.is_dir():
            names = {"rename", "replace", "mkdir", "unlink", "rmdir", "open", "save_file", "write_table"}
            later = [call for call in calls[synced[-1] : renamed] if call[1].parent == path and call[0] in names]
            assert not later, later
    durable = next(n for n, call in enumerate(calls) if n > renamed and call == ("fsync", new.parent))
    old = f"step-{OLD:08d}"
    touching = [
        number
        for number, (name, path) in enumerate(calls)
        if name != "fsync" and any(part.lstrip(".").startswith(old) for part in path.parts)
    ]
    assert touching
    assert min(touching) > durable
    # It loses its name first, all at once.
    assert calls[touching[0]] == ("rename", new.parent / old)


def test_every_file_is_written_through_a_call_that_is_watched(whole: Whole) -> None:
    """Otherwise there would be moments that no kill was tried at."""
    written = {path.name for name, path in whole.calls if name in ("open", "save_file", "write_table")}
    files = {path.name for path in whole.checkpoint.rglob("*") if path.is_file()}
    assert files - written <= {"tokenizer.json"}, "the tokenizers library writes that one itself"


@pytest.mark.parametrize("moment", ["the state", "the rename", "the old one"])
def test_a_run_that_was_killed_in_a_save_goes_on(moment: str, few: Path, tmp_path: Path) -> None:
    """With the real training around it: the resume is exact, and the remains are gone."""
    changes = {**LORA, **BLIND, "train.steps": 6, "checkpoint.every_steps": 2, "checkpoint.keep": 1}
    config = resolved(few, changes)
    straight = trained(config, tmp_path / "straight")

    run = tmp_path / "run"

    class Killed(BaseException):
        """Nobody catches it and cleans up, as nobody does after SIGKILL."""

    def before(number: int, name: str, path: Path) -> None:
        at = {
            "the state": name == "save_file" and path.name == "optimizer.safetensors" and "00000004" in str(path),
            "the rename": name == "rename" and path.name.startswith(".step-00000004."),
            "the old one": name in ("unlink", "rmdir") and (run / "checkpoints" / "step-00000004").exists(),
        }
        if at[moment]:
            raise Killed

    with (
        mock.patch("trainscope.trainer.checkpoints.folder.shutil.rmtree", _only_when(moment == "the old one")),
        mock.patch("trainscope.trainer.train.record_crash"),
        Watched(before)(),
        pytest.raises(Killed),
    ):
        trained(config, run)
    remains = list((run / "checkpoints").glob(".step-*.tmp"))
    assert len(remains) == 1
    assert read_run(run).status == "crashed"
    resumed = trained(config, run, resume="latest")
    (segment,) = RunDir(run).read()["segments"][1:]
    assert segment["start_step"] == (4 if moment == "the old one" else 2)
    assert not differences(straight.bits(), resumed.bits())
    assert_continued(run)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000006"]


def _only_when(wanted: bool) -> Callable[..., None]:
    """A killed process does not tidy up; but deleting an old checkpoint is what it may have been doing."""
    real = shutil.rmtree
    return real if wanted else lambda *args, **options: None


def test_a_resume_that_was_killed_before_its_segment_began(few: Path, tmp_path: Path) -> None:
    """It had made its folder, and run.json did not know of it yet."""
    config = resolved(few, LORA, BLIND, {"train.steps": 4})
    straight = trained(config, tmp_path / "straight")
    run = trained(config, tmp_path / "run", stop_at=2).run
    (run / "segments" / "1").mkdir()
    (run / "segments" / "1" / "half").touch()
    resumed = trained(config, run, resume="latest")
    assert not differences(straight.bits(), resumed.bits())
    assert_continued(run)
    names = {"config.toml", "config.resolved.json", "env.json", "fingerprint.parquet"}
    assert {path.name for path in (run / "segments" / "1").iterdir()} == names


# ---- out of room


def test_out_of_room_at_every_write(session: Session, whole: Whole, tmp_path: Path) -> None:
    """The old checkpoint stays as it is, the half new one goes, and it is said what to do."""
    run = prepared(session, tmp_path / "place")
    old, tried = digest(run.checkpoints / f"step-{OLD:08d}"), 0
    for wanted in [number for number, (name, _) in enumerate(whole.calls[: whole.renamed], 1) if name in WRITING]:

        def full(number: int, name: str, path: Path, wanted: int = wanted) -> None:
            if number < wanted or name not in WRITING or (name == "chmod" and number > wanted):
                return
            if name == "save_file":
                raise SafetensorError("I/O error: No space left on device (os error 28)")
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

        with Watched(full)(), pytest.raises(TrainingError, match="No space left on device") as caught:
            save(session, run)
        assert f"the checkpoint of step {NEW} cannot be written" in str(caught.value)
        assert "free disk space" in (caught.value.hint or "")
        (left,) = list(run.checkpoints.iterdir())
        assert left.name == f"step-{OLD:08d}"
        tried += 1
    assert tried > 30
    assert digest(left) == old
    # With room again, the same session saves.
    assert not differences(contents(save(session, run)), whole.saved)


def test_a_disk_that_fills_up_in_a_training(few: Path, tmp_path: Path) -> None:
    changes = {**LORA, **BLIND, "train.steps": 6, "checkpoint.every_steps": 2, "checkpoint.keep": 1}
    straight = trained(resolved(few, changes), tmp_path / "straight")

    def full(number: int, name: str, path: Path) -> None:
        if name == "save_file" and "step-00000004" in str(path):
            raise SafetensorError("I/O error: No space left on device (os error 28)")

    with Watched(full)(), pytest.raises(TrainingError, match="the checkpoint of step 4 cannot be written") as caught:
        trained(resolved(few, changes), tmp_path / "run")
    assert caught.value.exit_code == 2
    run = RunDir(tmp_path / "run")
    assert run.read()["status"] == "crashed"
    assert [path.name for path in run.checkpoints.iterdir()] == ["step-00000002"]
    assert [row["step"] for row in read_run(run.path).datasets["steps"].to_table().to_pylist()] == [1, 2, 3, 4]
    resumed = trained(resolved(few, changes), run.path, resume="latest")
    assert not differences(straight.bits(), resumed.bits())


def test_a_disk_that_is_full_before_the_start(few: Path, tmp_path: Path) -> None:
    """Told with the size that is needed, and nothing is made; a resume is told before its run is touched."""
    config = resolved(few, LORA, BLIND, {"train.steps": 4})
    trained(config, tmp_path / "run", stop_at=2)
    before = digest(tmp_path)
    usage = mock.Mock(return_value=shutil.disk_usage(tmp_path)._replace(free=100_000))
    with mock.patch("trainscope.trainer.checkpoints.disk.shutil.disk_usage", usage):
        for options in ({"out": tmp_path / "new" / "run"}, {"out": tmp_path / "run", "resume": "latest"}):
            with pytest.raises(
                TrainingError, match=r"a checkpoint needs about \d.* MiB, .* has 97\.7 KiB free"
            ) as caught:
                trained(config, **options)  # type: ignore[arg-type]
            assert "free disk space" in (caught.value.hint or "")
            assert caught.value.exit_code == 2
    assert digest(tmp_path) == before
    assert [call.args[0] for call in usage.call_args_list] == [tmp_path, tmp_path / "run"]


def test_room_for_some_of_the_checkpoints_is_a_warning(few: Path, tmp_path: Path) -> None:
    config = resolved(few, LORA, BLIND, {"train.steps": 4, "checkpoint.every_steps": 1})
    usage = mock.Mock(return_value=shutil.disk_usage(tmp_path)._replace(free=4 * 2**20))
    with mock.patch("trainscope.trainer.checkpoints.disk.shutil.disk_usage", usage):
        trained(config, tmp_path / "run")
    events = read_run(tmp_path / "run").datasets["events"].to_table().to_pylist()
    (warning,) = [event["detail"] for event in events if event["kind"] == "warning"]
    assert "4 checkpoints of about" in warning
    assert "set checkpoint.keep" in warning


# ---- the log before the checkpoint


def test_the_log_is_on_the_disk_before_the_checkpoint_is(few: Path, tmp_path: Path) -> None:
    """Else a resume would go on behind steps that nobody recorded."""
    seen: list[list[int]] = []

    class Look(Callback):
        def before_save(self, session: Session) -> None:
            table = read_run(tmp_path / "run").datasets["steps"].to_table()
            seen.append(sorted(table["step"].to_pylist()))

    config = resolved(few, LORA, BLIND, {"train.steps": 6, "checkpoint.every_steps": 3})
    trained(config, tmp_path / "run", Look())
    assert seen == [[1, 2, 3], [1, 2, 3, 4, 5, 6]]
