"""The leaves of cfg.toml's JSON Schema: every key that is no table, those of each optimizer for themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trainscope.config.model import RunConfig


@dataclass(frozen=True)
class Leaf:
    """A key: `optimizer` is the type whose key it is, else None; `schema` is its own JSON Schema."""

    key: str
    schema: Mapping[str, Any]
    required: bool
    optimizer: str | None = None

    @property
    def name(self) -> str:
        """train.steps; optimizer.adamw.lr for a key of an optimizer."""
        if self.optimizer is None:
            return self.key
        return f"optimizer.{self.optimizer}.{self.key.removeprefix('optimizer.')}"

    @property
    def branches(self) -> list[Mapping[str, Any]]:
        """The schemas that a value may fit one of; null, which TOML does not have, is left out."""
        parts = self.schema.get("anyOf", [self.schema])
        return [part for part in parts if part.get("type") != "null"]


def leaves() -> dict[str, Leaf]:
    """Every leaf by its name."""
    schema = RunConfig.model_json_schema()
    return {leaf.name: leaf for leaf in _below(schema, schema["$defs"], "")}


def _below(table: Mapping[str, Any], defs: Mapping[str, Any], prefix: str) -> Iterator[Leaf]:
    for name, found in table["properties"].items():
        key = f"{prefix}{name}"
        inner = _resolved(found, defs)
        if "discriminator" in inner:
            for kind, reference in inner["discriminator"]["mapping"].items():
                for leaf in _below(_resolved({"$ref": reference}, defs), defs, f"{key}."):
                    yield Leaf(leaf.key, leaf.schema, leaf.required, kind)
        elif "properties" in inner:
            yield from _below(inner, defs, f"{key}.")
        else:
            yield Leaf(key, inner, name in table.get("required", ()))


def _resolved(schema: Mapping[str, Any], defs: Mapping[str, Any]) -> Mapping[str, Any]:
    """A schema with its reference followed, and those of its branches."""
    if "$ref" in schema:
        return defs[schema["$ref"].rpartition("/")[2]]
    if "anyOf" in schema:
        return {**schema, "anyOf": [_resolved(part, defs) for part in schema["anyOf"]]}
    return schema
