"""`trainscope lora`: what is in a LoRA file, and the same LoRA with another rank or in another layout."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trainscope.errors import ConfigError

if TYPE_CHECKING:
    from trainscope.lora.examine import Examination
    from trainscope.lora.loss import Loss

lora_app = typer.Typer(help="Examine, resize and convert LoRA files.", no_args_is_help=True, rich_markup_mode=None)

LoraPath = Annotated[
    Path, typer.Argument(help="A .safetensors file, or a folder with pytorch_lora_weights.safetensors.", metavar="FILE")
]

VALUE_WIDTH = 100
"""Characters of a metadata value that the console shows; kohya's tag counts alone can be thousands."""


@lora_app.command()
def inspect(
    file: LoraPath,
    output_format: Annotated[str, typer.Option("--format", help="console or json.")] = "console",
) -> None:
    """Show ranks, alphas and strength of a LoRA, and what is wrong with it (exit 1) or broken in it (exit 2)."""
    from trainscope.lora.examine import examine
    from trainscope.lora.file import damaged, survey

    if output_format not in ("console", "json"):
        raise ConfigError(f"--format {output_format}: allowed are console, json")
    found = survey(file)
    examination = examine(found)
    if output_format == "json":
        typer.echo(json.dumps(examination.as_json(), indent=2, allow_nan=False))
    else:
        _show(examination)
    if found.damage:
        raise damaged(found)
    raise typer.Exit(1 if examination.problems else 0)


@lora_app.command()
def resize(
    file: LoraPath,
    out: Annotated[Path, typer.Argument(help="The .safetensors file to write; it must not exist.", metavar="OUT")],
    rank: Annotated[
        int | None, typer.Option(help="Rank of every module; above the present one the effect stays as it is.")
    ] = None,
    energy: Annotated[
        float | None,
        typer.Option(help="Or, per module, the smallest rank that keeps this share of ‖ΔW‖², 0 to 1."),
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(help="Alpha to write; the strength stays the same. Else alpha / rank is kept.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="fp32, bf16 or fp16; else as in FILE.")] = "",
) -> None:
    """Write a LoRA with another rank, as near to the same effect as the rank allows."""
    # Numpy's threads wait for one another at every one of the many small matrices, on a busy machine for minutes.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from trainscope.lora.file import read_lora
    from trainscope.lora.loss import losses
    from trainscope.lora.resize import Target
    from trainscope.lora.resize import resize as resize_pairs
    from trainscope.lora.write import check_free, write_resized

    _check_options(rank, energy, alpha, dtype)
    check_free(out, "diffusers")
    lora = read_lora(file)
    check_free(out, lora.layout)
    resized = resize_pairs(lora, Target(rank=rank, energy=energy, alpha=alpha, dtype=dtype or None))
    blocks, total = losses(resized)
    how = f"--rank {rank}" if rank is not None else f"--energy {energy:g}"
    story = f"rank {_span(total.old_ranks)} to {_span(total.new_ranks)} ({how}), {_share(total.kept)} of ‖ΔW‖² kept"
    written = write_resized(lora, resized, out, story)
    _show_losses([*blocks, total])
    if lora.rest:
        typer.echo(f"{len(lora.rest)} tensors that belong to no pair are copied as they were")
    for path in written:
        typer.echo(f"{path} written")


@lora_app.command()
def convert(
    file: LoraPath,
    to: Annotated[str, typer.Option(help="kohya or diffusers.")],
    output: Annotated[
        Path | None,
        typer.Option(help="The .safetensors file to write; it must not exist. Else beside FILE, named after it."),
    ] = None,
) -> None:
    """Write a LoRA in another program's layout, with the same weights to the bit."""
    from trainscope.lora.convert import convert as convert_file
    from trainscope.lora.file import read_lora
    from trainscope.lora.write import check_free, write_lora

    if to not in ("kohya", "diffusers"):
        raise ConfigError(f"--to {to}: allowed are kohya, diffusers")
    if output is not None:
        check_free(output, to)
    lora = read_lora(file)
    out = output or lora.path.with_name(f"{lora.path.stem}-{to}.safetensors")
    check_free(out, to)
    converted = convert_file(lora, "kohya" if to == "kohya" else "diffusers")
    written = write_lora(out, converted.tensors, converted.metadata)
    components = Counter(pair.component for pair in lora.pairs)
    typer.echo(
        f"{lora.layout} to {to}: {len(lora.pairs)} pairs ({_counts(components)}), "
        f"rank {_span([pair.rank for pair in lora.pairs])}, scale {_span([pair.scale for pair in lora.pairs])}"
    )
    for note in converted.notes:
        typer.echo(f"note: {note}")
    for path in written:
        typer.echo(f"{path} written")


def _check_options(rank: int | None, energy: float | None, alpha: float | None, dtype: str) -> None:
    """Raise `ConfigError` with everything that is wrong with the options of `resize`."""
    from trainscope.lora.tensors import WRITABLE

    problems = []
    if (rank is None) == (energy is None):
        problems.append("give either --rank or --energy")
    if rank is not None and rank < 1:
        problems.append(f"--rank {rank}: must be at least 1")
    if energy is not None and not 0 < energy <= 1:
        problems.append(f"--energy {energy:g}: must be above 0 and at most 1")
    if alpha is not None and not (alpha > 0 and math.isfinite(alpha)):
        problems.append(f"--alpha {alpha:g}: must be a number above 0")
    if dtype and dtype not in WRITABLE:
        problems.append(f"--dtype {dtype}: allowed are {', '.join(WRITABLE)}")
    if problems:
        raise ConfigError("the options cannot be followed:", problems=problems, hint="`trainscope lora resize --help`")


def _show(found: Examination) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from trainscope.lora.tensors import printable

    console = Console(highlight=False)
    origins = ", ".join(found.alpha_origins)
    values = {
        "dtype": _counts(found.dtypes),
        "rank": _counts(found.ranks),
        "alpha": f"{_counts(found.alphas)} ({origins})",
        "scale": _counts(found.scales),
        "‖ΔW‖": _norm(found.norm),
    }
    console.print(Text(f"{found.path}: {found.layout} layout, {found.pairs} pairs, {found.parameters:,} parameters"))
    console.print(Text(" · ".join(f"{name} {value}" for name, value in values.items())), end="\n\n")
    rows = [
        {
            "block": block.name,
            "pairs": str(block.pairs),
            "rank": _span(block.ranks),
            "scale": _span(block.scales),
            "‖ΔW‖": _norm(block.norm),
            "untrained": str(block.untrained or ""),
            "not finite": str(block.not_finite or ""),
            "strongest module": _within(block.strongest, block.name),
        }
        for block in found.blocks
    ]
    _print_table(rows)
    if found.metadata:
        table = Table("metadata", "", box=None, pad_edge=False)
        for key, value in sorted(found.metadata.items()):
            shown = printable(value)
            short = shown if len(shown) <= VALUE_WIDTH else f"{shown[:VALUE_WIDTH]} … ({len(shown):,} characters)"
            table.add_row(Text(printable(key)), Text(short, overflow="fold"))
        console.print()
        console.print(table)
    for label, sentences in (("note", found.notes), ("problem", found.problems)):
        for sentence in sentences:
            console.print(Text(f"{label}: {sentence}"))


def _show_losses(found: list[Loss]) -> None:
    rows = [
        {
            "block": loss.name,
            "modules": str(loss.modules),
            "rank": f"{_span(loss.old_ranks)} → {_span(loss.new_ranks)}",
            "‖ΔW‖² kept": _share(loss.kept),
            "error": f"{loss.lost:.2g}",
            "worst": f"{loss.worst:.2g}",
            "in": _within(loss.worst_module, loss.name),
        }
        for loss in found
    ]
    _print_table(rows)


def _print_table(rows: list[dict[str, str]]) -> None:
    """Columns that are empty in every row are left out; only the last gives way where the console is narrow."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    titles = [title for title in (rows[0] if rows else ()) if any(row[title] for row in rows)]
    table = Table(box=None, pad_edge=False)
    for title in titles:
        table.add_column(title, overflow="fold", no_wrap=title != titles[-1])
    for row in rows:
        table.add_row(*(Text(row[title]) for title in titles))
    Console(highlight=False).print(table)


def _within(module: str, block: str) -> str:
    """A module's name without the block that it is in, which stands beside it."""
    inside = module.replace(".", "_").startswith(block.replace(".", "_"))
    return (module[len(block) :].lstrip("._") if inside else "") or module


def _counts(values: Mapping[int, int] | Mapping[float, int] | Mapping[str, int]) -> str:
    """`4 (12), 8 (3)`: values with how many have them; the value alone where there is one."""
    named = [(f"{value:g}" if isinstance(value, float) else str(value), count) for value, count in values.items()]
    if len(named) == 1:
        return named[0][0]
    return ", ".join(f"{value} ({count})" for value, count in named[:4]) + (" …" if len(named) > 4 else "")


def _span(values: Collection[float]) -> str:
    """`4`, or `2–8`."""
    low, high = min(values), max(values)
    return f"{low:.3g}" if low == high else f"{low:.3g}–{high:.3g}"


def _norm(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"


def _share(value: float) -> str:
    """A share in percent, which says 100 only where nothing is missing."""
    return "100 %" if value >= 1 - 1e-12 else f"{min(100 * value, 99.99):.2f} %"
