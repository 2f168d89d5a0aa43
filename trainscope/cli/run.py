"""`trainscope run`: a full training, instrumented, and audited at its end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trainscope.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

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
    fail_on: Annotated[str, typer.Option(help="error, warning, info: exit 1 on such findings.")] = "never",
) -> None:
    """Train as a configuration says, and audit the result. The last line is the run directory."""
    import os
    import shlex

    from trainscope.cli.auditing import check_level, check_thresholds
    from trainscope.config.load import load_config

    check_level(fail_on)
    resolved = load_config(config, overrides or ())
    if resume not in (None, "latest"):
        resume = str(Path(resume).absolute())  # relative to where it was typed, not to the configuration
    resuming = (resume or resolved.config.checkpoint.resume) is not None
    taken = out is not None and out.exists() and (not out.is_dir() or any(out.iterdir()))
    if taken and not (resuming and out is not None and (out / "run.json").exists()):
        raise ConfigError(f"--out {out} exists and is not empty", hint="runs are never overwritten; name another")
    check_thresholds(resolved)

    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from rich.console import Console

    console = Console(highlight=False)
    console.print("loading torch and the model …", style="dim")
    from trainscope.cli.progress import ProgressDisplay
    from trainscope.trainer.train import train

    with ProgressDisplay(console) as display:
        finished = train(resolved, out=out, resume=resume, callbacks=[display])
    console.print(f"{finished.status} at step {finished.step}", markup=False)
    if finished.status == "interrupted":
        console.print(f"saved {finished.checkpoint.name}; to go on:", markup=False)
        sets = "".join(f" --set {shlex.quote(override)}" for override in overrides or ())
        command = f"trainscope run {config}{sets} --resume {finished.run.path}"
        console.print(f"    {command}", markup=False, soft_wrap=True)
    try:
        code = 0 if no_audit else _audit(finished.run.path, fail_on)
    finally:
        # Whatever came of the audit, the training is done.
        _say_how_to_use(finished, resolved, console)
        typer.echo(str(finished.run.path))
    raise typer.Exit(130 if finished.status == "interrupted" else code)


def _audit(run: Path, fail_on: str) -> int:
    from trainscope.cli.auditing import audit_run, show, write_reports
    from trainscope.engine.audit import exit_code

    report = audit_run(run)
    write_reports(report, run, {name: run / f"report.{name}" for name in ("json", "html")})
    show(report, run)
    return exit_code(report, fail_on)


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
    hint = usage_hint(method, weights, finished.inpainting, str(finished.model))
    console.print(textwrap.indent(hint, "    "), markup=False, soft_wrap=True)
