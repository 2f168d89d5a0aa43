"""`trainscope run`: a full training, looked at before it begins, while it goes on, and audited at its end."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from trainscope.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from trainscope.cli.auditing import FailFast
    from trainscope.config.load import ResolvedConfig
    from trainscope.trainer.training import Finished


def run(
    config: Annotated[Path, typer.Argument(help="A configuration.", metavar="CFG")],
    overrides: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE; may be repeated.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="The run directory to make; it must not exist, unless it is the one resumed.")
    ] = None,
    resume: Annotated[
        str | None, typer.Option(help="Go on from a checkpoint: latest, a run's directory, or a checkpoint in it.")
    ] = None,
    no_audit: Annotated[bool, typer.Option("--no-audit", help="Do not audit at the end.")] = False,
    fail_on: Annotated[
        str,
        typer.Option(
            help="error, warning, info or never: what to exit 1 on, before the training (preflight) and at its end.",
            metavar="LEVEL",
        ),
    ] = "never",
    fail_fast: Annotated[
        str | None,
        typer.Option(
            help="error, warning, info, or a rule's code: save, stop and exit 1 at such a finding while it trains; "
            "exit 1 if it shows at the end only.",
            metavar="LEVEL|CODE",
        ),
    ] = None,
) -> None:
    """Look at a configuration (preflight), train as it says, and audit the result.

    The last line is the run directory.
    """
    import os
    import shlex

    from trainscope.cli.auditing import check_level, check_thresholds
    from trainscope.config.load import load_config

    check_level(fail_on)
    resolved = load_config(config, overrides or ())
    if resume not in (None, "latest"):
        resume = str(Path(resume).absolute())  # relative to where it was typed, not to the configuration
    if os.environ.get("RANK", "0") != "0":
        _train_along(resolved, out, resume)
    resuming = (resume or resolved.config.checkpoint.resume) is not None
    taken = out is not None and out.exists() and (not out.is_dir() or any(out.iterdir()))
    if taken and not (resuming and out is not None and (out / "run.json").exists()):
        raise ConfigError(f"--out {out} exists and is not empty", hint="runs are never overwritten; name another")
    check_thresholds(resolved)
    stop_on = _stop_on(resolved, fail_fast)

    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from rich.console import Console

    console = Console(highlight=False)
    _look_before(resolved, config, out, fail_on, console)
    console.print("loading torch and the model …", style="dim")
    from trainscope.cli.monitor import Monitor
    from trainscope.cli.progress import ProgressDisplay
    from trainscope.trainer.train import train

    with ProgressDisplay(console) as display, Monitor(display.finding, stop_on) as monitor:
        watching = [display, monitor] if resolved.config.audit.live else [display]
        finished = train(resolved, out=out, resume=resume, callbacks=watching)
    console.print(f"{finished.status} at step {finished.step}", markup=False)
    if finished.status == "interrupted":
        console.print(f"saved {finished.checkpoint.name}; to go on:", markup=False)
        sets = "".join(f" --set {shlex.quote(override)}" for override in overrides or ())
        command = f"trainscope run {config}{sets} --resume {finished.run.path}"
        console.print(f"    {command}", markup=False, soft_wrap=True)
    try:
        code = 0 if no_audit else _audit(finished.run.path, fail_on, stop_on)
    finally:
        # Whatever came of the audit, the training is done.
        _say_how_to_use(finished, resolved, console)
        typer.echo(str(finished.run.path))
    if finished.status == "interrupted":
        code = 1 if monitor.stopped_by else 130
    raise typer.Exit(code)


def _look_before(resolved: ResolvedConfig, config: Path, out: Path | None, fail_on: str, console: Console) -> None:
    """Print what preflight finds. Exits with 1 if that is at or above `fail_on`: before torch is loaded."""
    from trainscope.cli.auditing import show
    from trainscope.cli.preflight import preflight_report
    from trainscope.engine.audit import fails

    try:
        report = preflight_report(resolved, out=out)
    except Exception as error:  # of what cannot be loaded the training says more, and has the last word
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        console.print(f"preflight could not look: {reason}", style="dim", markup=False)
        return
    counts = Counter(rule.outcome for rule in report.rules)
    if not report.findings and not counts["crashed"]:
        unseen = f", {counts['not_observable']} not observable" if counts["not_observable"] else ""
        console.print(f"preflight: nothing found ({counts['clear']} rules clear{unseen})", style="dim")
        return
    console.print("preflight", style="bold")
    show(report, config)
    console.print()
    if any(fails(finding, fail_on) for finding in report.findings):
        console.print(f"not trained: --fail-on {fail_on}", markup=False)
        raise typer.Exit(1)


def _stop_on(resolved: ResolvedConfig, asked: str | None) -> FailFast | None:
    """What stops the training: `--fail-fast`, else `audit.on_finding`."""
    from trainscope.cli.auditing import FailFast, fail_fast
    from trainscope.engine.loader import load_rules

    section = resolved.config.audit
    if asked is None:
        return FailFast(section.fail_on) if section.on_finding == "stop" else None
    if not section.live:
        raise ConfigError(f"--fail-fast {asked} with audit.live = false: nobody looks while it trains")
    return fail_fast(asked, load_rules()[0])


def _train_along(resolved: ResolvedConfig, out: Path | None, resume: str | None) -> NoReturn:
    """One of several processes, but not the first: it trains, and leaves the talking to the first."""
    from trainscope.trainer.train import train

    finished = train(resolved, out=out, resume=resume)
    raise typer.Exit(130 if finished.status == "interrupted" else 0)


def _audit(run: Path, fail_on: str, stop_on: FailFast | None) -> int:
    from trainscope.cli.auditing import audit_run, show, write_reports
    from trainscope.engine.audit import exit_code

    report = audit_run(run)
    write_reports(report, run, {name: run / f"report.{name}" for name in ("json", "html")})
    show(report, run)
    fatal = stop_on is not None and any(stop_on.matches(one.code, one.severity) for one in report.findings)
    return exit_code(report, fail_on) or int(fatal)


def _say_how_to_use(finished: Finished, resolved: ResolvedConfig, console: Console) -> None:
    import textwrap

    from trainscope.trainer.checkpoints.folder import weights_path
    from trainscope.trainer.models.save import usage_hint

    method = resolved.config.train.method
    console.print()
    weights = weights_path(finished.checkpoint, method)
    console.print(f"The trained weights: {weights}", markup=False, soft_wrap=True)
    if resolved.config.ema.enabled:
        average = weights_path(finished.checkpoint, method, "ema")
        console.print(f"Their average (EMA): {average}", markup=False, soft_wrap=True)
    console.print("To use them:", markup=False)
    hint = usage_hint(method, weights, finished.inpainting, str(finished.model), sdxl=finished.sdxl)
    console.print(textwrap.indent(hint, "    "), markup=False, soft_wrap=True)
