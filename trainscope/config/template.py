"""The cfg.toml that `trainscope init` writes: every key with its meaning, those with a default commented out.

A line that begins with `# ` is a remark; one that begins with `#` alone is a setting that takes effect without it.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from trainscope.config.describe import NOT_SET, Key, describe, heading, sections
from trainscope.config.optimizer import OPTIMIZERS

WIDTH = 100

_STARTING = {
    "model.base": '"tiny:sd15"',
    "train.steps": "300",
    "train.batch_size": "4",
    "data.dir": '"images"',
    "data.resolution": "64",
}
"""What is filled in, so that the configuration runs as it is."""


def template() -> str:
    """A commented cfg.toml, no line longer than `WIDTH` unless a single value is."""
    rows = list(describe())
    lines = [*_remark("A training for trainscope. What is commented out with # shows the default."), ""]
    for section, model in sections():
        if section != "optimizer":
            lines += [*_remark(heading(model)), f"[{section}]"]
            lines += [line for row in rows if row.section == section for line in _setting(row)]
        elif model is OPTIMIZERS["adamw"]:
            others = "`trainscope config show optimizer` shows the keys of every type."
            lines += [*_remark(f"{heading(model)} {others}"), f"[{section}]"]
            own = [row for row in rows if row.section == section and (not row.optimizers or "adamw" in row.optimizers)]
            lines += [line for row in own for line in _setting(row)]
        else:
            continue
        lines.append("")
    return "\n".join(lines)


def _setting(row: Key) -> Iterator[str]:
    """The remark and the line of a key."""
    about = row.meaning
    if " | " in row.type:
        about += f" ({row.type})"
    starting = _STARTING.get(row.key)
    value = starting or row.default
    if value == NOT_SET:
        # TOML has no value that says so.
        about += " Not set."
        if row.example is None:
            yield from _remark(f"{row.name}: {about}")
            return
        about += " For example:"
        value = row.example
    yield from _remark(about)
    yield f"{'' if starting else '#'}{row.name} = {value}"


def _remark(text: str) -> Iterator[str]:
    # Names and commands stay whole: they are to be copied.
    yield from textwrap.wrap(
        text, WIDTH, initial_indent="# ", subsequent_indent="# ", break_long_words=False, break_on_hyphens=False
    )
