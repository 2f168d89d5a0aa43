"""`trainscope fix`: the corrected configuration, from the findings' remedies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trainscope.errors import ConfigError

if TYPE_CHECKING:
    from trainscope.schema import Report

MADE = ("run.dir", "data.cache_dir")
"""Folders that a run makes."""
PATH_KEYS = ("data.dir", "data.mask_dir", "model.base", "model.tokenizer", "model.vae", "lora.init_from", *MADE)
"""Keys that are relative to the configuration's file, and change when it moves."""


def fix(
    run: Annotated[Path, typer.Argument(help="A run directory, or a configuration.", metavar="RUN")],
    output: Annotated[Path, typer.Option(help="The file to write; it must not exist.")] = Path("cfg.fixed.toml"),
) -> None:
    """Write the configuration with the remedies applied."""
    from trainscope.config.load import parse_config
    from trainscope.engine.remedies import chosen_patches
    from trainscope.toml import apply_patch, patch_diff

    report, text, keys, source = _planned(run) if run.suffix == ".toml" else _audited(run)
    chosen = chosen_patches(report)
    if not chosen:
        typer.echo(f"{report.verdict}\nThere is nothing to change: no finding has a remedy.")
        return
    before = apply_patch(text, {**_given_on_the_command_line(keys), **_moved_paths(keys, source, output)})
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


def _audited(run: Path) -> tuple[Report, str, list[dict[str, Any]], Path | None]:
    """The report of a run, and its configuration: text, keys with value and origin, file."""
    from trainscope.cli.auditing import audit_run
    from trainscope.runlog.reader import read_run

    report, read = audit_run(run), read_run(run)
    if not read.config_text.strip():
        raise ConfigError(
            f"{run} was recorded from a training that no cfg.toml describes: there is none to correct",
            hint=f"`trainscope audit {run}` says what to change",
        )
    return report, read.config_text, read.config_rows(), read.config_path


def _planned(config: Path) -> tuple[Report, str, list[dict[str, Any]], Path | None]:
    """The same for a configuration that has not run, from its preflight."""
    from trainscope.cli.preflight import preflight_report
    from trainscope.config.load import load_config

    resolved = load_config(config)
    rows = [{"key": key, "value": value, "origin": origin} for key, value, origin in resolved.rows()]
    return preflight_report(resolved), resolved.text, rows, config.resolve()


def _given_on_the_command_line(keys: list[dict[str, Any]]) -> dict[str, Any]:
    """What `--set` changed belongs to the configuration that is being corrected."""
    given = {row["key"]: row["value"] for row in keys if row["origin"] == "cli"}
    # JSON has no infinity; the run's file says it in words.
    return {key: float(value) if value in ("inf", "-inf") else value for key, value in given.items()}


def _moved_paths(keys: list[dict[str, Any]], source: Path | None, output: Path) -> dict[str, str]:
    """Relative paths, rewritten if the corrected configuration will lie in another folder than the one it corrects."""
    if source is None or source.parent == output.resolve().parent:
        return {}
    moved = {}
    for row in keys:
        if row["key"] not in PATH_KEYS or row["origin"] not in ("file", "cli") or not row["value"]:
            continue
        path = source.parent / row["value"]
        # A model may also be a hub id or a tiny one; then there is no such path.
        if not Path(row["value"]).is_absolute() and (path.exists() or row["key"] in MADE):
            moved[row["key"]] = str(path.resolve())
    return moved
