"""`trainscope exec`: any command that trains with PyTorch, watched without a change."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from trainscope.errors import ConfigError

if TYPE_CHECKING:
    from trainscope.integrations.script import Settings

FORWARDED = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGCONT", "SIGWINCH")
    if hasattr(signal, name)
)
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def exec_(
    command: Annotated[list[str], typer.Argument(help="What to run.", metavar="-- COMMAND [ARGUMENTS]")],
    out: Annotated[Path | None, typer.Option(help="The run directory to make; it must not exist.")] = None,
    every: Annotated[
        str, typer.Option(help="Optimizer steps between looks at every tensor; auto keeps to the budget.")
    ] = "auto",
    budget: Annotated[float, typer.Option(help="Share of the training time that looking may take, with auto.")] = 0.02,
    memory_mb: Annotated[int, typer.Option(help="MiB that copies of the weights may take.")] = 1024,
) -> None:
    """Run a script that trains, record what its optimizer does, and print the run directory on standard error.

    The script needs no change: `trainscope exec -- python train.py --lr 1e-4`. Its output, exit code and signals are
    its own. Launchers (torchrun, accelerate launch) are commands as well.
    """
    from trainscope.integrations.script import VARIABLE

    settings = _settings(command, out, every, budget, memory_mb)
    startup = Path(__file__).parents[1] / "integrations" / "startup"
    path = os.pathsep.join([str(startup), *filter(None, [os.environ.get("PYTHONPATH")])])
    code = _run(command, {**os.environ, "PYTHONPATH": path, VARIABLE: settings.as_variable()})
    sys.stdout.flush()
    _report(settings, code)
    _leave(code)


def _settings(command: list[str], out: Path | None, every: str, budget: float, memory_mb: int) -> Settings:
    from trainscope.integrations.script import Settings

    if every != "auto" and not (every.isdigit() and int(every) > 0):
        raise ConfigError(f"--every {every}: expected auto or a number of steps")
    if not 0 < budget <= 1:
        raise ConfigError(f"--budget {budget}: expected a share above 0 and up to 1")
    if memory_mb < 1:
        raise ConfigError(f"--memory-mb {memory_mb}: expected at least 1")
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {out} exists and is not empty", hint="runs are never overwritten; name another")
    name = _name(command)
    if out is None:
        out = Path("runs") / f"{name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
        number = 2
        while out.exists():
            out = out.with_name(f"{name}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{number}")
            number += 1
    # Absolute: the script may change its working directory.
    return Settings(str(out.absolute()), name, every if every == "auto" else int(every), budget, memory_mb)


def _name(command: list[str]) -> str:
    """What a run is called: the script's name, the module's, or the command's."""
    script = next((part for part in command if part.endswith(".py")), None)
    if script is None and "-m" in command[:-1]:
        script = command[command.index("-m") + 1]
    return Path(script or command[0]).name.removesuffix(".py")


def _run(command: list[str], environment: dict[str, str]) -> int:
    """The exit code of the command; that of a signal is negative. Signals go on to it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*FORWARDED, signal.SIGCHLD})
    try:
        child = subprocess.Popen(  # noqa: S603
            command, env=environment, preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, before)
        )
        while child.poll() is None:
            info = signal.sigwaitinfo({*FORWARDED, signal.SIGCHLD})
            # What the terminal sends, it sends to the script as well.
            if info.si_signo != signal.SIGCHLD and info.si_code <= 0:
                child.send_signal(info.si_signo)
    except OSError as error:
        raise ConfigError(
            f"cannot run {command[0]}: {error.strerror or error}", hint="trainscope exec -- python train.py …"
        ) from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return child.returncode


def _report(settings: Settings, code: int) -> None:
    """Where the runs are; a run whose script failed did not complete."""
    from trainscope.integrations.script import RUNS
    from trainscope.runlog.rundir import RunDir

    found = [Path(settings.directory(number)) for number in range(1, RUNS)]
    runs = [RunDir(path) for path in found if (path / "run.json").exists()]
    for run in runs:
        said = run.read()["status"]
        if -code in STOPPING and said == "running":
            run.update(status="interrupted")
        elif code > 0 and said == "completed":
            run.update(status="crashed")
        typer.echo(f"trainscope: recorded in {run.path}", err=True)
    if not runs:
        typer.echo("trainscope: nothing was recorded: no PyTorch optimizer took a step", err=True)


def _leave(code: int) -> NoReturn:
    """End as the command did, also by a signal."""
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    raise typer.Exit(code)
