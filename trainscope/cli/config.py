"""`trainscope config`: what a configuration can hold, from the models that check it."""

from __future__ import annotations

from typing import Annotated

import typer

from trainscope.errors import ConfigError

config_app = typer.Typer(help="Explain the keys of cfg.toml.", no_args_is_help=True, rich_markup_mode=None)


@config_app.command()
def show(key: Annotated[str, typer.Argument(help="A key, or a section.")] = "") -> None:
    """Show every key, or one, with its type, default and meaning."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from trainscope.config.describe import describe, nearest

    rows = [row for row in describe() if not key or row.key == key or row.key.startswith(f"{key}.")]
    if not rows:
        raise ConfigError(f"unknown key: {key}", hint=nearest(key) or "`trainscope config show` lists all")
    table = Table(box=None, pad_edge=False)
    for title in ("key", "type", "default", "meaning"):
        table.add_column(title, overflow="fold", no_wrap=title == "key")
    for row in rows:
        table.add_row(*map(Text, (row.key, row.type, row.default, row.meaning)))
    Console().print(table)


@config_app.command()
def schema() -> None:
    """Print the JSON Schema of cfg.toml, for editors."""
    import json

    from trainscope.config.model import RunConfig

    typer.echo(json.dumps(RunConfig.model_json_schema(), indent=2))
