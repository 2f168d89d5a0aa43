"""`trainscope audit`: what went wrong in a run, why, and what to change."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from trainscope.errors import ConfigError


def audit(
    run: Annotated[Path, typer.Argument(help="A run directory.", metavar="RUN")],
    formats: Annotated[
        str, typer.Option("--format", help="Of html, json, junit, sarif, github, console; several with commas.")
    ] = "html,json,console",
    output: Annotated[
        str, typer.Option(help="Folder or file for the report; - is standard output (one format that is a file).")
    ] = "",
    fail_on: Annotated[str, typer.Option(help="error, warning, info or never: what to exit 1 on.")] = "",
    strict: Annotated[bool, typer.Option("--strict", help="Also exit 1 if a rule could not look.")] = False,
    accepted: Annotated[Path | None, typer.Option(help="A file of accepted findings, which do not fail.")] = None,
    update_accepted: Annotated[
        bool, typer.Option("--update-accepted", help="Rewrite that file: what is found now is accepted for 90 days.")
    ] = False,
    rules: Annotated[list[Path] | None, typer.Option(help="More rules: a folder of them.")] = None,
    select: Annotated[str, typer.Option(help="Only these codes or prefixes, with commas.")] = "",
    ignore: Annotated[str, typer.Option(help="Not these codes or prefixes, with commas.")] = "",
) -> None:
    """Say what went wrong in a run, why, and what to change."""
    from trainscope.cli.auditing import audit_run, check_level, configured_fail_on, listed, show
    from trainscope.cli.formats import FILES, SCREEN, Verdict, check_formats, let_pass, tell_accepted
    from trainscope.engine.audit import exit_code
    from trainscope.report.anchors import config_file
    from trainscope.report.json import write_atomically
    from trainscope.runlog.reader import read_run

    wanted = listed(formats)
    check_formats(wanted, [*FILES, *SCREEN], formats)
    machine = [name for name in wanted if name != "console"]
    if output == "-" and len(machine) != 1:
        raise ConfigError("--output - takes exactly one format", hint="add --format json, html, junit or sarif")
    in_files = [name for name in machine if name in FILES]
    if fail_on:
        check_level(fail_on)
    report = audit_run(run, rules=rules or (), select=listed(select), ignore=listed(ignore))
    files = dict.fromkeys(in_files, Path("-")) if output == "-" else _files(run, in_files, output, FILES)
    verdict = Verdict(report, fail_on or configured_fail_on(run), let_pass(report, accepted, update=update_accepted))
    read = read_run(run)
    config = config_file(read.config_path, report.config, otherwise=read.config_copy)
    for name, file in files.items():
        text = verdict.render(name, run, config)
        if output == "-":
            typer.echo(text, nl=False)
        else:
            write_atomically(file, text.encode("utf-8", "replace"))
    if "github" in wanted:
        typer.echo(verdict.render("github", run, config), nl=False)
        verdict.add_summary()
    if "console" in wanted and output != "-":
        show(report, run)
        tell_accepted(verdict)
    raise typer.Exit(exit_code(report, verdict.fail_on, strict, verdict.accepted))


def _files(run: Path, wanted: list[str], output: str, names: Mapping[str, str]) -> dict[str, Path]:
    """Where each format goes: into the run directory, another folder, or one named file."""
    target = Path(output) if output else run
    if target.suffix in {Path(name).suffix for name in names.values()}:
        if len(wanted) != 1 or Path(names[wanted[0]]).suffix != target.suffix:
            raise ConfigError(
                f"--output {output} is one file, and not for --format {','.join(wanted) or 'console'}",
                hint="name a folder, or one format",
            )
        return {wanted[0]: target}
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"--output {output}: {reason}", hint="name a folder, or a file") from error
    return {name: target / names[name] for name in wanted}
