"""The configuration's models as rows of text, for whoever explains a key.

Nothing is said here of any key: it all comes from the models.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, TypeGuard

from pydantic import TypeAdapter
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from trainscope.config.model import RunConfig
from trainscope.config.optimizer import OPTIMIZERS
from trainscope.config.section import Section
from trainscope.toml import toml_value

REQUIRED, NOT_SET = "required", "not set"


@dataclass(frozen=True)
class Key:
    """A key of cfg.toml: `default` is a TOML value, `REQUIRED` or `NOT_SET`, `example` a TOML value where there is one.

    `optimizers` are the types that have it, where not all do.
    """

    key: str
    type: str
    default: str
    meaning: str
    example: str | None = None
    optimizers: tuple[str, ...] = ()

    @property
    def has_no_default(self) -> bool:
        return self.default in (REQUIRED, NOT_SET)

    @property
    def name(self) -> str:
        return self.key.rpartition(".")[2]

    @property
    def section(self) -> str:
        return self.key.rpartition(".")[0]


def describe() -> Iterator[Key]:
    """Every key, section by section. What several optimizers have alike is one row, and what differs is several."""
    for section, model in sections():
        if section != "optimizer":
            yield from describe_section(section, model)
        elif model is OPTIMIZERS["adamw"]:
            yield from _describe_optimizers()


def describe_section(section: str, model: type[Section]) -> Iterator[Key]:
    """The keys of a section itself, those of sections inside it left out."""
    for name, field in model.model_fields.items():
        if not is_section(field.annotation):
            yield Key(
                key=f"{section}.{name}",
                type=_type(field),
                default=_default(field),
                meaning=" ".join((field.description or "").split()),
                example=toml_value(field.examples[0]) if field.examples else None,
            )


def describe_optimizer(kind: str) -> list[Key]:
    """The keys of one optimizer."""
    return list(describe_section("optimizer", OPTIMIZERS[kind]))


def optimizer_meanings() -> dict[str, str]:
    """What each optimizer is, by its type."""
    return {kind: heading(model) for kind, model in OPTIMIZERS.items()}


def _describe_optimizers() -> Iterator[Key]:
    kinds = tuple(OPTIMIZERS)
    yield Key("optimizer.type", " | ".join(kinds), toml_value(kinds[0]), "Which optimizer.")
    owners: dict[Key, list[str]] = {}
    for kind in kinds:
        for row in describe_optimizer(kind):
            if row.name != "type":
                owners.setdefault(row, []).append(kind)
    names = list(dict.fromkeys(row.key for row in owners))
    for row in sorted(owners, key=lambda row: names.index(row.key)):
        everywhere = len(owners[row]) == len(kinds)
        yield replace(row, optimizers=() if everywhere else tuple(owners[row]))


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


def heading(model: type[Section]) -> str:
    """What a section is about, in a line."""
    return (model.__doc__ or "").partition("\n\n")[0].replace("\n", " ").strip()


def nearest(key: str) -> str | None:
    """A suggestion for a misspelt key."""
    close = difflib.get_close_matches(key, [row.key for row in describe()], n=1)
    return f"did you mean {close[0]}?" if close else None


def _type(field: FieldInfo) -> str:
    kind: Any = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    return _schema_type(TypeAdapter(kind).json_schema())


_BOUNDS = {
    "exclusiveMinimum": ">",
    "minimum": "≥",
    "exclusiveMaximum": "<",
    "maximum": "≤",
    "multipleOf": "multiple of",
}


def _schema_type(schema: dict[str, Any]) -> str:
    """A JSON Schema in a few words."""
    if "enum" in schema:
        return " | ".join(str(value) for value in schema["enum"])
    if "const" in schema:
        return str(schema["const"])
    if "anyOf" in schema:
        return " | ".join(_schema_type(part) for part in schema["anyOf"] if part.get("type") != "null")
    if "prefixItems" in schema:
        return f"{len(schema['prefixItems'])} of {_schema_type(schema['prefixItems'][0])}"
    if schema.get("type") == "array":
        return f"list of {_schema_type(schema['items'])}"
    if schema.get("type") == "object":
        return "table"
    bounds = ", ".join(f"{sign} {_number(schema[name])}" for name, sign in _BOUNDS.items() if name in schema)
    return f"{schema['type']} {bounds}".strip()


def _number(value: float) -> str:
    return "2^63" if value == 2**63 else f"{value:g}"


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "{}" if field.default_factory else REQUIRED
    return NOT_SET if field.default is None else toml_value(field.default)
