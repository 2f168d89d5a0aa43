"""The text of a cfg.toml: values as TOML writes them, and patches that keep the user's comments and order.

Knows no key's meaning and no other layer.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Mapping, MutableMapping
from typing import Any

from trainscope.errors import ConfigError

_MARK = "trainscope looks for this line"


def toml_value(value: Any) -> str:
    """A value in TOML's notation, on one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {toml_value(item)}" for key, item in value.items()) + " }"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, float):
        if not math.isfinite(value):
            return str(value)
        # 1e-5, not 1e-05: people compare it with what they typed.
        return re.sub(r"e([+-]?)0+(?=\d)", r"e\1", repr(value))
    return str(value)


def apply_patch(text: str, patch: Mapping[str, Any]) -> str:
    """Set dotted keys in a cfg.toml, its comments kept; None removes a key.

    Raises `ConfigError` where the text is not TOML or a key leads through something that is not a table.
    """
    import tomlkit  # only diffs and `fix` need it
    from tomlkit.exceptions import TOMLKitError

    try:
        document = tomlkit.parse(text)
        for key, value in patch.items():
            _set(document, key, value)
        return str(tomlkit.dumps(document))
    except (TOMLKitError, ValueError, TypeError) as error:
        raise ConfigError(f"the configuration cannot be changed: {error}", hint="set the keys by hand") from error


def patch_diff(text: str, patch: Mapping[str, Any], *, name: str = "cfg.toml", context: int = 2) -> str:
    """What a patch changes, as a unified diff without a last line end; empty where it changes nothing."""
    text = text.replace("\r\n", "\n")
    before, after = _lines(text), _lines(apply_patch(text, patch))
    return "\n".join(difflib.unified_diff(before, after, name, name, lineterm="", n=context))


def line_of(text: str, key: str) -> int | None:
    """The line, from 1, where a dotted key is set in a cfg.toml; else that of its table's header.

    None where there is neither, or where the text is not TOML.
    """
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    *parents, name = key.split(".")
    try:
        table: Any = tomlkit.parse(text)
        document = table
        for parent in parents:
            table = table[parent]
        if name in table and not isinstance(table[name], MutableMapping):
            # tomlkit does not tell lines: the value is marked, and the mark is looked for.
            table[name] = _MARK
            return next(number for number, line in enumerate(_lines(tomlkit.dumps(document)), 1) if _MARK in line)
    except (TOMLKitError, KeyError, TypeError):
        return None
    header = f"[{'.'.join(parents)}]"
    stripped = ("".join(line.partition("#")[0].split()) for line in _lines(text.replace("\r\n", "\n")))
    return next((number for number, line in enumerate(stripped, 1) if line == header), None)


def _lines(text: str) -> list[str]:
    """Split as TOML and patch tools do: at newlines only, not at the other breaks that `splitlines` knows."""
    return text.removesuffix("\n").split("\n")


def _set(document: Any, dotted: str, value: Any) -> None:
    import tomlkit

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
        table[key] = tomlkit.value(toml_value(value)) if isinstance(value, float) else value


def _blank_line(document: Any) -> None:
    import tomlkit

    text = tomlkit.dumps(document)
    if text and not text.endswith("\n\n"):
        if not text.endswith("\n"):
            document.add(tomlkit.nl())
        document.add(tomlkit.nl())
