"""A remedy as a change of cfg.toml: the patched text, and the unified diff that shows it.

Keeps the user's comments and order. Must not know reports, HTML or what a key means.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, MutableMapping
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError

from trainscope.errors import ConfigError
from trainscope.report.wording import assignment, toml_value


def apply_patch(text: str, patch: Mapping[str, Any]) -> str:
    """Set dotted keys in a cfg.toml text, its comments kept; None removes a key.

    Raises ConfigError where the text is not TOML or a key leads through something that is not a table.
    """
    try:
        document = tomlkit.parse(text)
        for key, value in patch.items():
            _set(document, key, value)
        return tomlkit.dumps(document)
    except (TOMLKitError, ValueError, TypeError) as error:
        raise ConfigError(f"cannot patch cfg.toml: {error}", hint="set the keys by hand") from error


def config_diff(text: str, patch: Mapping[str, Any], *, name: str = "cfg.toml", context: int = 2) -> str:
    """Return the patch as a unified diff of the config; plain `key = value` lines where no diff can be made."""
    if not text.strip():
        return assignments(patch)
    text = text.replace("\r\n", "\n")
    try:
        patched = apply_patch(text, patch)
    except ConfigError:
        return assignments(patch)
    lines = list(difflib.unified_diff(_lines(text), _lines(patched), name, name, lineterm="", n=context))
    return "\n".join(lines) or assignments(patch)


def assignments(patch: Mapping[str, Any]) -> str:
    """Return the patch as `key = value` lines."""
    return "\n".join(assignment(key, value) for key, value in patch.items())


def _lines(text: str) -> list[str]:
    """Split as TOML and patch tools do: at newlines only, not at the other breaks that `splitlines` knows."""
    return text.removesuffix("\n").split("\n")


def _set(document: tomlkit.TOMLDocument, dotted: str, value: Any) -> None:
    *parents, key = dotted.split(".")
    if not all((*parents, key)):
        raise ValueError(f"{dotted!r} is not a key")
    table: Any = document
    for depth, parent in enumerate(parents):
        if parent not in table:
            if value is None:
                return
            if depth == 0:
                _blank_line(document)
            # a table that holds only tables needs no header of its own
            table[parent] = tomlkit.table(is_super_table=depth < len(parents) - 1)
        table = table[parent]
        if not isinstance(table, MutableMapping):
            raise ValueError(f"{'.'.join(parents[: depth + 1])} is not a table")
    if value is None:
        table.pop(key, None)
    elif isinstance(table.get(key), MutableMapping) and not isinstance(value, Mapping):
        raise ValueError(f"{dotted} is a table")
    else:
        # 1e-5, not 1e-05: people compare it with what they typed
        table[key] = tomlkit.value(toml_value(value)) if isinstance(value, float) else value


def _blank_line(document: tomlkit.TOMLDocument) -> None:
    text = tomlkit.dumps(document)
    if text and not text.endswith("\n\n"):
        if not text.endswith("\n"):
            document.add(tomlkit.nl())
        document.add(tomlkit.nl())
