"""What a segment of a run is: its configuration and its environment, as files and as rows of the log.

Knows nothing of where either comes from.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trainscope.runlog.durable import write_atomically
from trainscope.runlog.rundir import write_json
from trainscope.runlog.writer import RunWriter

Keys = Sequence[tuple[str, Any, str]]
"""Key, value and origin of each key of a configuration."""


def write_description(folder: Path, *, text: str, path: Path | None, keys: Keys, facts: Mapping[str, str]) -> None:
    """The segment's files. `text` is the configuration as it was given, `path` where it lay."""
    write_atomically(folder / "config.toml", text.encode())
    rows = [{"key": key, "value": _finite(value), "origin": origin} for key, value, origin in keys]
    write_json(folder / "config.resolved.json", {"path": str(path.resolve()) if path else None, "keys": rows})
    write_json(folder / "env.json", dict(facts))


def record_keys(writer: RunWriter, keys: Keys) -> None:
    """Rows of `config`: text as it is, everything else as JSON."""
    for key, value, origin in keys:
        plain = value if value is None or isinstance(value, str) else json.dumps(_finite(value))
        writer.add_row("config", key=key, value=plain, origin=origin)


def record_facts(writer: RunWriter, facts: Mapping[str, str]) -> None:
    """Rows of `env`."""
    for key, value in facts.items():
        writer.add_row("env", key=key, value=value, origin="trainscope")


def now() -> str:
    """As run.json has times."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _finite(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
