"""`trainscope init`: a configuration to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trainscope.errors import ConfigError


def init(folder: Annotated[Path, typer.Argument(help="Where to write cfg.toml.")] = Path()) -> None:
    """Write a commented cfg.toml to start from."""
    from trainscope.config.template import template

    path = folder / "cfg.toml"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(template())
    except FileExistsError:
        raise ConfigError(f"{path} exists", hint="name another folder; nothing is overwritten") from None
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error}") from error
    typer.echo(f"{path} written. Set data.dir to your images, then: trainscope run {path}")
