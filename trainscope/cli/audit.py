"""`trainscope audit`: what went wrong in a run, why, and what to change."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trainscope.errors import ConfigError


def audit(
    run: Annotated[Path, typer.Argument(help="A run directory.", metavar="RUN")],
    formats: Annotated[str, typer.Option("--format", help="Of html, json, console; several with commas.")] = (
        "html,json,console"
    ),
    output: Annotated[
        str, typer.Option(help="Folder or file for the report; - is standard output (json or html).")
    ] = "",
    fail_on: Annotated[str, typer.Option(help="error, warning, info or never: what to exit 1 on.")] = "",
    strict: Annotated[bool, typer.Option("--strict", help="Also exit 1 if a rule could not look.")] = False,
    rules: Annotated[list[Path] | None, typer.Option(help="More rules: a folder of them.")] = None,
    select: Annotated[str, typer.Option(help="Only these codes or prefixes, with commas.")] = "",
    ignore: Annotated[str, typer.Option(help="Not these codes or prefixes, with commas.")] = "",
) -> None:
    """Say what went wrong in a run, why, and what to change."""
    from trainscope.cli.auditing import FORMATS, audit_run, check_level, configured_fail_on, listed, show, write_reports
    from trainscope.engine.audit import exit_code

    wanted = listed(formats)
    unknown = [name for name in wanted if name not in FORMATS]
    if unknown or not wanted:
        raise ConfigError(f"--format {formats}: allowed are {', '.join(FORMATS)}")
    if fail_on:
        check_level(fail_on)
    report = audit_run(run, rules=rules or (), select=listed(select), ignore=listed(ignore))
    if output == "-":
        _to_standard_output(report, run, wanted)
    else:
        write_reports(report, run, _files(run, [name for name in wanted if name != "console"], output))
        if "console" in wanted:
            show(report, run)
    raise typer.Exit(exit_code(report, fail_on or configured_fail_on(run), strict))


def _to_standard_output(report: object, run: Path, wanted: list[str]) -> None:
    import json

    from trainscope.report.html import render_html
    from trainscope.schema import to_json

    machine = [name for name in wanted if name != "console"]
    if len(machine) != 1:
        raise ConfigError("--output - takes exactly one format", hint="add --format json or --format html")
    plain = to_json(report)
    text = json.dumps(plain, ensure_ascii=False) if machine == ["json"] else render_html(plain, run)
    typer.echo(text)


def _files(run: Path, wanted: list[str], output: str) -> dict[str, Path]:
    """Where each format goes: into the run directory, another folder, or one named file."""
    target = Path(output) if output else run
    if target.suffix in (".html", ".json"):
        if [target.suffix[1:]] != wanted and len(wanted) == 1:
            raise ConfigError(f"--output {output} is not a {wanted[0]} file")
        return {target.suffix[1:]: target}
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"--output {output}: {reason}", hint="name a folder, or a .html or .json file") from error
    return {name: target / f"report.{name}" for name in wanted}
