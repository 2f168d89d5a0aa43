"""Puts the verbs together and turns exceptions into one message and an exit code.

0 nothing at or above --fail-on · 1 findings · 2 usage, unreadable input, a training that could not go on ·
3 trainscope or a rule failed · 130 interrupted · 141 the reader of the output went away.
"""

from __future__ import annotations

import io
import os
import sys
import traceback
from typing import Annotated, Any

import typer

from trainscope import __version__
from trainscope.cli.audit import audit
from trainscope.cli.compare import compare
from trainscope.cli.config import config_app
from trainscope.cli.exec import exec_
from trainscope.cli.fix import fix
from trainscope.cli.gate import gate
from trainscope.cli.init import init
from trainscope.cli.lora import lora_app
from trainscope.cli.preflight import preflight
from trainscope.cli.prove import prove
from trainscope.cli.rules import rules_app
from trainscope.cli.run import run
from trainscope.cli.sql import sql
from trainscope.errors import TrainingError, TrainscopeError

INTERNAL_ERROR, INTERRUPTED, USAGE = 3, 130, 2
OUTPUT_GONE = 141
"""What a shell says of a program that SIGPIPE ended: neither clean nor findings."""

# typer brings its own copy of click, or uses an installed one: either way this is the base of its usage errors.
UsageProblem: type[Exception] = next(cls for cls in typer.BadParameter.__mro__ if cls.__name__ == "ClickException")

app = typer.Typer(
    name="trainscope",
    help="Train diffusion models, see why a training learned nothing, and prove the remedy.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"trainscope {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    pass


for verb in (init, run, preflight, audit, fix, gate, compare, prove, sql):
    app.command()(verb)
# What stands behind the command is its own, whatever it begins with.
app.command("exec", context_settings={"allow_interspersed_args": False})(exec_)
app.add_typer(rules_app, name="rules")
app.add_typer(config_app, name="config")
app.add_typer(lora_app, name="lora")


def main() -> None:
    """The `trainscope` command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a console that has no "≥" shows "?", which is no reason to fail
    # Known before parsing, so that an error in the parsing itself can be debugged too.
    own = sys.argv.index("exec") if "exec" in sys.argv else len(sys.argv)  # behind it, it may be the script's
    debug = "--debug" in sys.argv[:own]
    if debug:
        sys.argv.remove("--debug")
    try:
        code = app(standalone_mode=False)
    except UsageProblem as error:
        _complain_of_usage(error)
        code = USAGE
    except (typer.Abort, KeyboardInterrupt):
        _complain("interrupted")
        code = INTERRUPTED
    except TrainscopeError as error:
        if debug:
            traceback.print_exc()
        # Of several processes the first one tells what is wrong with the input; a training can fail on any of them.
        rank = os.environ.get("RANK", "0")
        if rank == "0":
            _complain(str(error), error.hint)
        elif isinstance(error, TrainingError):
            _complain(f"process {rank}: {error}", error.hint)
        code = error.exit_code
    except SystemExit as stop:
        # Both click and rich leave with 1 when the reader of our output is gone (`| head`); but 1 means findings.
        if not isinstance(stop.__context__, BrokenPipeError):
            raise
        sys.stderr.close()  # nobody is left to tell
        code = OUTPUT_GONE
    except Exception as error:
        if debug:
            traceback.print_exc()
        _complain(f"trainscope failed: {type(error).__name__}: {error}", "--debug shows where; please report it")
        code = INTERNAL_ERROR
    sys.exit(code if isinstance(code, int) else 0)


def _complain_of_usage(error: Any) -> None:
    if type(error).__name__ == "NoArgsIsHelpError":  # no mistake: the help is what was wanted
        error.show()
        return
    command = error.ctx.command_path if getattr(error, "ctx", None) else "trainscope"
    _complain(error.format_message().rstrip("."), f"`{command} --help`")


def _complain(message: str, hint: str | None = None) -> None:
    typer.echo(f"error: {message}", err=True)
    if hint:
        typer.echo(f"  try: {hint}", err=True)
