"""`trainscope compare`: runs side by side, their configuration first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trainscope.errors import ConfigError, RunError

if TYPE_CHECKING:
    from trainscope.engine.compare.result import RunComparison
    from trainscope.runlog.reader import Run

FILES = {"html": "comparison.html", "json": "comparison.json"}
FORMATS = ("console", *FILES)
LEAST_RUNS = 2


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run directories: two or more.", metavar="RUN RUN…")],
    formats: Annotated[
        str, typer.Option("--format", help=f"Of {', '.join(FORMATS)}; several with commas.")
    ] = "html,console",
    output: Annotated[
        str, typer.Option(help="Folder or file, the working folder by default; - is standard output (html or json).")
    ] = "",
) -> None:
    """Lay runs side by side: what differs in their configuration, what was found, what was measured.

    Writes comparison.html into the working folder. Only a comparison is ever replaced.
    """
    from trainscope.cli.auditing import listed
    from trainscope.cli.formats import check_formats

    wanted = listed(formats)
    check_formats(wanted, FORMATS, formats)
    files = _files([name for name in wanted if name in FILES], output)
    compared = compared_runs(runs)
    _show(compared, files, console="console" in wanted and output != "-")
    raise typer.Exit(3 if compared.crashed else 0)


def compared_runs(paths: Sequence[Path]) -> RunComparison:
    """Audit each run as it is now, and compare them. Raises `RunError` that names every path that is no run."""
    from trainscope.cli.auditing import thresholds_of
    from trainscope.engine.compare.build import MOST_RUNS
    from trainscope.engine.compare.build import compare as side_by_side
    from trainscope.engine.compare.read import observe
    from trainscope.engine.loader import load_rules

    if not LEAST_RUNS <= len(paths) <= MOST_RUNS:
        raise ConfigError(
            f"compare takes {LEAST_RUNS} to {MOST_RUNS} runs, and these are {len(paths)}",
            hint="trainscope compare RUN RUN, with run directories as `trainscope run` prints them last",
        )
    opened = _opened(paths)
    rules, broken = load_rules()
    observed = []
    for run in opened:
        with _told(f"reading {run.directory.path}"):
            # A run that ended before its first segment has no configuration.
            thresholds = thresholds_of(run.config_rows()) if run.info["segments"] else {}
            try:
                observed.append(observe(run, rules, broken, thresholds))
            except ConfigError as error:  # thresholds of rules that there are no more
                raise ConfigError(f"{run.directory.path}: {error}", hint=error.hint) from error
    return side_by_side(observed)


def _opened(paths: Sequence[Path]) -> list[Run]:
    from trainscope.runlog.reader import read_run

    runs, problems, hints = [], [], []
    for path in paths:
        try:
            if path.is_file():
                raise RunError(
                    f"{path} is a file, and runs are directories",
                    hint="a recorded baseline is for `trainscope gate --against`",
                )
            run = read_run(path)
            _ = run.datasets  # every file is looked at, so that all that is damaged is told at once
            runs.append(run)
        except RunError as error:
            problems.append(str(error))
            hints += [error.hint] if error.hint else []
    if problems:
        raise RunError(
            "\n  ".join(problems), hint=hints[0] if hints else "`trainscope run` prints a run's directory last"
        )
    return runs


def _told(text: str) -> Any:
    """Tell on a terminal what takes a while."""
    from rich.console import Console
    from rich.text import Text

    return Console(stderr=True).status(Text(text))


def _files(wanted: Sequence[str], output: str) -> dict[str, Path]:
    """Where each format goes, looked at before the work is done."""
    if output == "-":
        if len(wanted) != 1:
            raise ConfigError("--output - takes exactly one format", hint="add --format json or --format html")
        return {wanted[0]: Path("-")}
    if output and not wanted:
        raise ConfigError(f"--output {output}: the console is no file", hint="add --format console,html")
    target = Path(output or ".")
    if target.suffix in {Path(name).suffix for name in FILES.values()}:
        if [Path(FILES[name]).suffix for name in wanted] != [target.suffix]:
            raise ConfigError(f"--output {output} is one file, and not for {', '.join(wanted)}", hint="name a folder")
        files = {wanted[0]: target}
    else:
        files = {name: target / FILES[name] for name in wanted}
    for file in files.values():
        _check_ours(file)
    if files and output:
        folder = next(iter(files.values())).parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror or error
            raise ConfigError(f"--output {output}: {reason}", hint="name a folder or a file") from error
    return files


def _check_ours(file: Path) -> None:
    """Refuse to replace what is no comparison."""
    from trainscope.engine.compare.result import KIND
    from trainscope.report.compare import GENERATOR

    if not file.exists():
        return
    mark = f'content="{GENERATOR}"' if file.suffix == ".html" else f'"kind": "{KIND}"'
    try:
        with file.open("rb") as content:
            ours = mark.encode() in content.read(2000)
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}", hint="name another with --output") from error
    if not ours:
        raise ConfigError(
            f"{file} exists, and is no comparison that may be replaced", hint="name another with --output, or move it"
        )


def _show(compared: RunComparison, files: dict[str, Path], *, console: bool) -> None:
    from trainscope.report.json import json_text, write_atomically
    from trainscope.schema import to_json

    plain = to_json(compared)
    for name, file in files.items():
        if name == "html":
            from trainscope.report.compare import render_comparison

            text = render_comparison(plain)
        else:
            text = json_text(plain)
        if file == Path("-"):
            typer.echo(text, nl=False)
        else:
            write_atomically(file, text.encode("utf-8", "replace"))
    if console:
        from rich.console import Console

        from trainscope.report.compare_console import print_comparison

        print_comparison(plain, Console())
        typer.echo()
    for file in files.values():
        if file != Path("-"):
            typer.echo(file)
