"""cfg.toml and `--set` → a checked `RunConfig` that remembers where every value came from.

All errors of an input are reported at once, each with its key and what is allowed. Knows nothing of torch.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from trainscope.config.combinations import impossible_combinations
from trainscope.config.model import RunConfig
from trainscope.config.optimizer import OPTIMIZERS, explain_foreign_key, explain_type
from trainscope.errors import ConfigError

Origin = Literal["default", "file", "cli", "derived"]


@dataclass(frozen=True)
class ResolvedConfig:
    """A configuration with its source text and the origin of each key.

    `base_dir` is what relative paths in it are relative to. `derived` holds what was worked out when the run began
    (a drawn seed, the device, `plan.*`); a derived value of a key stands before the configured one.
    """

    config: RunConfig
    text: str
    path: Path | None
    base_dir: Path
    origins: dict[str, Origin]
    derived: dict[str, Any] = field(default_factory=dict)

    def rows(self) -> list[tuple[str, Any, Origin]]:
        """Every key with its value and origin, the derived ones in effect."""
        configured = flatten(self.config.model_dump(mode="json"))
        values: dict[str, tuple[Any, Origin]] = {
            key: (value, self.origins.get(key, "default")) for key, value in configured.items()
        }
        values.update({key: (value, "derived") for key, value in self.derived.items()})
        return [(key, value, origin) for key, (value, origin) in sorted(values.items())]

    def derive(self, values: dict[str, Any]) -> ResolvedConfig:
        return replace(self, derived={**self.derived, **values})

    def resolve_path(self, value: str) -> Path:
        """A path of the configuration, which is relative to the configuration's file."""
        return self.base_dir / Path(value).expanduser()


def parse_override(text: str) -> tuple[str, Any]:
    """`KEY=VALUE` of `--set`: VALUE is a TOML value; a bare word is a string."""
    key, separator, raw = text.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"--set {text}: expected KEY=VALUE", hint="for example --set train.steps=200")
    try:
        value = tomllib.loads(f"value = {raw.strip()}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        value = raw.strip()
    return key.strip(), value


def load_config(path: Path, overrides: Sequence[str] = ()) -> ResolvedConfig:
    """Read and check a configuration file. Raises `ConfigError` with every problem found."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors write a byte order mark, which TOML does not know
    except FileNotFoundError:
        raise ConfigError(f"no such configuration: {path}", hint="`trainscope init` writes one to start from") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    return parse_config(text, path=path, overrides=overrides)


def parse_config(text: str, *, path: Path | None = None, overrides: Sequence[str] = ()) -> ResolvedConfig:
    """Check the text of a configuration; relative paths are relative to `path`'s folder, else the working one."""
    name = str(path) if path else "configuration"
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{name} is not valid TOML: {error}") from error
    except RecursionError:
        raise ConfigError(f"{name} is not valid TOML: it is nested too deeply") from None
    origins: dict[str, Origin] = dict.fromkeys(flatten(tree), "file")
    for override in overrides:
        key, value = parse_override(override)
        _set(tree, key, value)
        origins = {known: origin for known, origin in origins.items() if not known.startswith(f"{key}.")}
        origins.update(dict.fromkeys(flatten({key: value}), "cli"))
    return check(tree, name=name, text=text, path=path, origins=origins)


def check(
    tree: dict[str, Any], *, name: str, text: str = "", path: Path | None = None, origins: dict[str, Origin]
) -> ResolvedConfig:
    """Validate a parsed tree."""
    optimizer = tree.get("optimizer")
    if isinstance(optimizer, dict):
        optimizer.setdefault("type", "adamw")
    try:
        config = RunConfig.model_validate(tree)
    except ValidationError as error:
        problems = _merged(_problem(detail, tree) for detail in error.errors())
    else:
        problems = list(impossible_combinations(config))
    if problems:
        plural = "problem" if len(problems) == 1 else "problems"
        raise ConfigError(
            f"{name}: {len(problems)} {plural}",
            problems=problems,
            hint="`trainscope config show` lists every key with its meaning",
        )
    base_dir = (path.parent if path else Path()).resolve()
    return ResolvedConfig(config=config, text=text, path=path, base_dir=base_dir, origins=origins)


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables → dotted keys. An empty table has no key."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _set(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for part in parents:
        child = tree.setdefault(part, {})
        if not isinstance(child, dict):
            raise ConfigError(f"--set {dotted}: {part} is not a section", hint="`trainscope config show`")
        tree = child
    tree[last] = value


def _merged(problems: Iterable[tuple[str, str]]) -> list[str]:
    """The branches of a union fail one by one: ("key = value", "a"), ("key = value", "b") → "key = value: a; or b"."""
    merged: dict[str, list[str]] = {}
    for subject, reason in problems:
        merged.setdefault(subject, []).append(reason)
    return [f"{subject}: {'; or '.join(dict.fromkeys(reasons))}" for subject, reasons in merged.items()]


def _problem(detail: ErrorDetails, tree: dict[str, Any]) -> tuple[str, str]:
    """What is wrong, and why."""
    # The tag of a discriminated union stands in the location but not in the file.
    parts = [str(part) for part in detail["loc"]]
    if len(parts) > 1 and parts[0] == "optimizer" and parts[1] in OPTIMIZERS:
        del parts[1]
    # Nor do the branches of a plain union, which pydantic names "literal[…]", "constrained-int" …
    known = [part for part in parts if part.isidentifier() or part.isdigit() or part in _keys_in(tree)]
    key = ".".join(known)
    if detail["type"] == "extra_forbidden":
        return key, _unknown_key(key, tree)
    if detail["type"] == "missing":
        return key, "is required"
    if detail["type"] == "union_tag_invalid":
        found = tree.get("optimizer", {}).get("type")
        known_as = explain_type(found)
        near = f"; {known_as}" if known_as else _nearest(str(found), OPTIMIZERS)
        return f"optimizer.type = {_shown(found)}", f"allowed are {', '.join(OPTIMIZERS)}{near}"
    reason = _REASONS.get(detail["type"]) or f"{detail['msg'][0].lower()}{detail['msg'][1:]}"
    return f"{key} = {_shown(detail['input'])}", reason


_REASONS = {
    "model_type": "expected a section with keys",
    "model_attributes_type": "expected a section with keys",
    "dict_type": "expected a section with keys",
    "tuple_type": "expected a list",
    "too_short": "has too few entries",
    "too_long": "has too many entries",
    "finite_number": "expected a finite number",
}
"""pydantic speaks of Python's types; a configuration has TOML's."""


def _unknown_key(key: str, tree: dict[str, Any]) -> str:
    section, _, name = key.rpartition(".")
    if section == "optimizer":
        foreign = explain_foreign_key(name, str(tree.get("optimizer", {}).get("type", "adamw")))
        if foreign:
            return foreign
    keys = list(all_keys())
    same_name = [known for known in keys if known.rpartition(".")[2] == name]
    near = _nearest(key, [*keys, *RunConfig.model_fields])
    if same_name and section not in {known.rpartition(".")[0] for known in same_name}:
        near = f"; did you mean {' or '.join(same_name)}?"
    return f"unknown key{near}"


def all_keys() -> Iterator[str]:
    """Every dotted key that a configuration can have (those of all optimizers)."""
    for section, info in RunConfig.model_fields.items():
        if section == "optimizer":
            names = dict.fromkeys(name for model in OPTIMIZERS.values() for name in model.model_fields)
        else:
            names = dict.fromkeys(_names(info.annotation))
        yield from (f"{section}.{name}" for name in names)


def _names(section: Any) -> Iterator[str]:
    """A section's keys, those of a section inside it with its name before them."""
    for name, info in section.model_fields.items():
        inner = getattr(info.annotation, "model_fields", None)
        yield from (f"{name}.{key}" for key in _names(info.annotation)) if inner else (name,)


def _nearest(found: str, allowed: Any) -> str:
    close = difflib.get_close_matches(found, list(allowed), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def _keys_in(tree: dict[str, Any]) -> set[str]:
    return {part for key in flatten(tree) for part in key.split(".")}


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "…"
