"""`trainscope preflight`: what will go wrong, before a GPU hour is spent."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trainscope.errors import ConfigError

if TYPE_CHECKING:
    from trainscope.config.load import ResolvedConfig
    from trainscope.schema import Report


def preflight(
    configs: Annotated[list[Path], typer.Argument(help="A configuration, or several.", metavar="CFG…")],
    overrides: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE; may be repeated.")] = None,
    output_format: Annotated[
        str, typer.Option("--format", help="One of console, github, json, junit, sarif; it is printed.")
    ] = "console",
    fail_on: Annotated[str, typer.Option(help="error, warning, info or never: what to exit 1 on.")] = "error",
    accepted: Annotated[Path | None, typer.Option(help="A file of accepted findings, which do not fail.")] = None,
    update_accepted: Annotated[
        bool, typer.Option("--update-accepted", help="Rewrite that file: what is found now is accepted for 90 days.")
    ] = False,
    select: Annotated[str, typer.Option(help="Only these codes or prefixes, with commas.")] = "",
    ignore: Annotated[str, typer.Option(help="Not these codes or prefixes, with commas.")] = "",
) -> None:
    """Say what will go wrong with a configuration, without training."""
    from trainscope.cli.auditing import check_level, listed, show
    from trainscope.cli.formats import SCREEN, Verdict, check_formats, let_pass, tell_accepted
    from trainscope.config.load import load_config
    from trainscope.engine.audit import exit_code
    from trainscope.report.anchors import config_file

    check_formats([output_format], (*SCREEN, "json", "junit", "sarif"), output_format)
    check_level(fail_on)
    if len(configs) > 1 and (output_format not in SCREEN or update_accepted):
        raise ConfigError(f"{len(configs)} configurations: this is done for one at a time")
    code = 0
    for config in configs:
        resolved = load_config(config, overrides or ())
        report = preflight_report(resolved, select=listed(select), ignore=listed(ignore))
        verdict = Verdict(report, fail_on, let_pass(report, accepted, update=update_accepted))
        if output_format == "console":
            show(report, config)
            tell_accepted(verdict)
        else:
            file = config_file(config, resolved.text, otherwise=config)
            typer.echo(verdict.render(output_format, config, file), nl=False)
        if output_format == "github":
            verdict.add_summary()
        code = max(code, exit_code(report, fail_on, accepted=verdict.accepted))
    raise typer.Exit(code)


def preflight_report(
    resolved: ResolvedConfig, *, out: Path | None = None, select: Sequence[str] = (), ignore: Sequence[str] = ()
) -> Report:
    """Evaluate the rules that a configuration and its files can decide; `out` is the run's directory, if known."""
    from trainscope.cli.auditing import thresholds_of
    from trainscope.engine.audit import audit
    from trainscope.engine.loader import builtin_root, load_rules
    from trainscope.engine.preflight import preflight_source
    from trainscope.engine.proofs import load_proofs

    rules, broken = load_rules()
    rows = [{"key": key, "value": value} for key, value, _ in resolved.rows()]
    return audit(
        preflight_source(resolved, out=out),
        {
            "name": resolved.config.run.name,
            "status": "planned",
            "path": str(resolved.path or ""),
            "given": {key: value for key, value, origin in resolved.rows() if origin == "cli"},
        },
        rules=rules,
        broken=broken,
        stage="preflight",
        select=select,
        ignore=ignore,
        thresholds=thresholds_of(rows),
        proofs=load_proofs(builtin_root()),
        config_text=resolved.text,
    )
