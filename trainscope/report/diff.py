"""A remedy as a change of cfg.toml, for people to read.

Must not know HTML or what a key means.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainscope.errors import ConfigError
from trainscope.report.wording import assignment
from trainscope.toml import apply_patch, patch_diff


def as_started(text: str, given: Mapping[str, Any]) -> str:
    """The config as the run had it: what the command line changed belongs to what a remedy changes."""
    if not text.strip() or not given:
        return text
    try:
        # JSON has no infinity; a run's file says it in words
        return apply_patch(text, {k: float(v) if v in ("inf", "-inf") else v for k, v in given.items()})
    except ConfigError:
        return text


def config_diff(text: str, patch: Mapping[str, Any]) -> str:
    """The patch as a unified diff of the config; plain `key = value` lines where no diff can be made."""
    if not text.strip():
        return assignments(patch)
    try:
        return patch_diff(text, patch) or assignments(patch)
    except ConfigError:
        return assignments(patch)


def assignments(patch: Mapping[str, Any]) -> str:
    """The patch as `key = value` lines."""
    return "\n".join(assignment(key, value) for key, value in patch.items())
