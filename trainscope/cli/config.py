"""`trainscope config`: what a configuration can hold, from the models that check it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from trainscope.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from trainscope.config.describe import Key

config_app = typer.Typer(help="Explain the keys of cfg.toml.", no_args_is_help=True, rich_markup_mode=None)


@config_app.command()
def show(
    key: Annotated[str, typer.Argument(help="A key, a section, or one optimizer: optimizer.prodigy.")] = "",
) -> None:
    """Show every key, or some, with default, type and meaning."""
    from rich.console import Console

    from trainscope.config.describe import describe, describe_optimizer, nearest, optimizer_meanings

    console, kinds = Console(highlight=False), optimizer_meanings()
    section, _, kind = key.partition(".")
    if section == "optimizer" and kind in kinds:
        _print(console, f'optimizer.type = "{kind}"', kinds[kind])
        _print_keys(console, describe_optimizer(kind)[1:])
        return
    rows = [row for row in describe() if not key or row.key == key or row.key.startswith(f"{key}.")]
    if not rows:
        raise ConfigError(f"unknown key: {key}", hint=nearest(key) or "`trainscope config show` lists all")
    _print_keys(console, rows)
    if key in ("optimizer", "optimizer.type"):
        console.print("\nThe types, of which `trainscope config show optimizer.NAME` shows the keys of one:\n")
        for name, meaning in kinds.items():
            _print(console, name, meaning)


def _print_keys(console: Console, rows: Sequence[Key]) -> None:
    """Each key with its default and type, then what it means."""
    for row in rows:
        default = f" ({row.default})" if row.has_no_default else f" = {row.default}"
        kind = "" if row.key == "optimizer.type" else f"    {row.type}"
        owners = f" [{', '.join(row.optimizers)}]" if row.optimizers else ""
        _print(console, row.key, row.meaning + owners, more=default + kind)


def _print(console: Console, subject: str, meaning: str, *, more: str = "") -> None:
    import textwrap

    from rich.text import Text

    console.print(Text.assemble((subject, "bold"), more))
    indent = " " * 4
    lines = textwrap.wrap(
        meaning,
        console.width,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    console.print(Text("\n".join(lines)), soft_wrap=True)


@config_app.command()
def schema() -> None:
    """Print the JSON Schema of cfg.toml, for editors."""
    import json

    from trainscope.config.model import RunConfig

    typer.echo(json.dumps(RunConfig.model_json_schema(), indent=2))
