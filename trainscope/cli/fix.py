"""`trainscope fix`: the corrected configuration, from the findings' remedies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trainscope.errors import ConfigError

if TYPE_CHECKING:
    from trainscope.runlog.reader import Run

PATH_KEYS = ("data.dir", "data.mask_dir", "model.base", "run.dir")
"""Keys that are relative to the configuration's file, and change when it moves."""


def fix(
    run: Annotated[Path, typer.Argument(help="A run directory.", metavar="RUN")],
    output: Annotated[Path, typer.Option(help="The file to write; it must not exist.")] = Path("cfg.fixed.toml"),
) -> None:
    """Write the configuration with the remedies applied."""
    from trainscope.cli.auditing import audit_run
    from trainscope.config.load import parse_config
    from trainscope.engine.remedies import chosen_patches
    from trainscope.runlog.reader import read_run
    from trainscope.toml import apply_patch, patch_diff

    report = audit_run(run)
    chosen = chosen_patches(report)
    if not chosen:
        typer.echo(f"{report.verdict}\nThere is nothing to change: no finding has a remedy.")
        return
    read = read_run(run)
    before = apply_patch(read.config_text, {**_given_on_the_command_line(read), **_moved_paths(read, output)})
    patch = {key: value for _, remedy in chosen for key, value in remedy.config_patch.items()}
    after = apply_patch(before, patch)
    parse_config(after, path=output)  # a remedy that makes an impossible configuration is never written
    try:
        with output.open("x", encoding="utf-8") as file:
            file.write(after)
    except FileExistsError:
        raise ConfigError(f"{output} exists", hint="name another file with --output") from None
    except OSError as error:
        raise ConfigError(f"cannot write {output}: {error}") from error
    for code, remedy in chosen:
        typer.echo(f"{code}: {remedy.title}")
    typer.echo(patch_diff(before, patch, name=output.name))
    typer.echo(f"{output} written. Next: trainscope run {output}")


def _given_on_the_command_line(run: Run) -> dict[str, Any]:
    """What `--set` changed belongs to the configuration that is being corrected."""
    return {row["key"]: row["value"] for row in run.config_rows() if row["origin"] == "cli"}


def _moved_paths(run: Run, output: Path) -> dict[str, str]:
    """Relative paths, rewritten if the corrected configuration will lie in another folder than the run's."""
    source = run.config_path
    if source is None or source.parent == output.resolve().parent:
        return {}
    values = {row["key"]: row for row in run.config_rows()}
    moved = {}
    for key in PATH_KEYS:
        row = values.get(key)
        if row is None or row["origin"] not in ("file", "cli") or not row["value"]:
            continue
        path = source.parent / row["value"]
        # model.base may also be a hub id or a tiny model; then there is no such path.
        if not Path(row["value"]).is_absolute() and (path.exists() or key == "run.dir"):
            moved[key] = str(path.resolve())
    return moved
