"""The configuration's models as text: for `trainscope config show` and `trainscope init`.

Nothing is said here of any key: it all comes from the models.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeGuard

from pydantic import TypeAdapter
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from trainscope.config.model import RunConfig
from trainscope.config.optimizer import OPTIMIZERS
from trainscope.config.section import Section
from trainscope.toml import toml_value


@dataclass(frozen=True)
class Key:
    """A key of cfg.toml; `default` is a TOML value, or says that the key is required or not set."""

    key: str
    type: str
    default: str
    meaning: str


def describe() -> Iterator[Key]:
    """Every key, section by section; those of one optimizer only are marked with its type."""
    for section, model in sections():
        for name, field in model.model_fields.items():
            if is_section(field.annotation):
                continue  # it comes by itself
            owner = f" ({model.model_fields['type'].default})" if section == "optimizer" and name != "type" else ""
            yield Key(
                key=f"{section}.{name}",
                type=_type(field),
                default=_default(field),
                meaning=" ".join((field.description or "").split()) + owner,
            )


def sections() -> Iterator[tuple[str, type[Section]]]:
    """Every section with its model, one inside another after it; `optimizer` once for each type."""
    for section, field in RunConfig.model_fields.items():
        if section == "optimizer":
            yield from ((section, model) for model in OPTIMIZERS.values())
        elif is_section(model := field.annotation):
            yield section, model
            for name, inner in model.model_fields.items():
                if is_section(inner.annotation):
                    yield f"{section}.{name}", inner.annotation


def is_section(kind: Any) -> TypeGuard[type[Section]]:
    """Whether a field is a table of its own."""
    return isinstance(kind, type) and issubclass(kind, Section)


def nearest(key: str) -> str | None:
    """A suggestion for a misspelt key."""
    close = difflib.get_close_matches(key, [row.key for row in describe()], n=1)
    return f"did you mean {close[0]}?" if close else None


def template() -> str:
    """A commented cfg.toml: every section, the keys that have a default commented out."""
    parts = ["# A training for trainscope. `trainscope config show KEY` explains a key.", ""]
    for section, model in sections():
        if section == "optimizer" and model is not OPTIMIZERS["adamw"]:
            continue
        parts += [f"# {model.__doc__.splitlines()[0] if model.__doc__ else ''}", f"[{section}]"]
        for name, field in model.model_fields.items():
            if is_section(field.annotation):
                continue
            meaning = " ".join((field.description or "").split())
            given = _EXAMPLES.get(f"{section}.{name}")
            default = _default(field)
            value = given or (default if default not in ("required", "not set") else "…")
            parts.append(f"{'' if given else '# '}{name} = {value}  # {meaning}")
        parts.append("")
    return "\n".join(parts)


_EXAMPLES = {
    "model.base": '"tiny:sd15"',
    "train.steps": "300",
    "train.batch_size": "4",
    "data.dir": '"images"',
    "data.resolution": "64",
}
"""What `init` fills in, so that its configuration runs as it is."""


def _type(field: FieldInfo) -> str:
    kind: Any = field.annotation
    schema = TypeAdapter(kind).json_schema()
    text = _schema_type(schema)
    bounds = [f"{_SIGNS[key]} {value:g}" for limit in field.metadata for key, value in _bounds(limit)]
    return f"{text} {', '.join(bounds)}".strip()


_SIGNS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤", "multiple_of": "multiple of"}


def _bounds(limit: Any) -> Iterator[tuple[str, float]]:
    for key in _SIGNS:
        value = getattr(limit, key, None)
        if isinstance(value, int | float):
            yield key, value


def _schema_type(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return " | ".join(str(value) for value in schema["enum"])
    if "const" in schema:
        return str(schema["const"])
    if "anyOf" in schema:
        return " | ".join(_schema_type(part) for part in schema["anyOf"] if part.get("type") != "null")
    if schema.get("type") == "array":
        return f"list of {_schema_type(schema.get('items', {'type': 'number'}))}"
    if schema.get("type") == "object":
        return "table"
    return str(schema.get("type", "value"))


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "{}" if field.default_factory else "required"
    if field.default is None:
        return "not set"
    return toml_value(field.default)
