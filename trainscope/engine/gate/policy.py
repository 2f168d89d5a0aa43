"""gate.toml: what a gate ignores, which findings fail it, and floors of the user's own.

Knows the names of the measures; compares nothing.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trainscope.engine.gate.measures import EXACT, MEASURES
from trainscope.engine.problems import did_you_mean, validation_problems
from trainscope.errors import ConfigError
from trainscope.schema import SEVERITIES

NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class FloorPolicy(BaseModel):
    """How large a difference of a measure must be to count; both must be exceeded."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    relative: NonNegative = 0.0
    """As a share of the baseline's value."""
    absolute: NonNegative = 0.0
    """In the measure's unit."""


class Policy(BaseModel):
    """A gate.toml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    false_discovery_rate: Annotated[float, Field(gt=0, lt=0.5)] = 0.01
    """With several baselines: the expected share of false alarms among the measures that fail."""
    strict: bool = False
    """Fail also where a signal is missing, as --strict."""
    findings: Literal["error", "warning", "info", "never"] = "error"
    """The mildest finding that fails if no baseline has it."""
    ignore: list[str] = []
    """Measures that cannot fail: `throughput`, or at one place `loss, low noise`."""
    floors: dict[str, FloorPolicy] = {}
    """Floors by measure, in place of the documented ones."""

    def ignores(self, name: str, where: str) -> bool:
        return name in self.ignore or f"{name}, {where}" in self.ignore


def reaches(severity: str, level: str) -> bool:
    """Whether a finding is at or above a level; no finding reaches `never`."""
    ranks = [*map(str, SEVERITIES), "never"]
    return severity in ranks and ranks.index(severity) >= ranks.index(level)


def read_policy(path: Path | None) -> Policy:
    """Read gate.toml (None: the defaults). Raises `ConfigError` with every problem found."""
    if path is None:
        return Policy()
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"no such policy: {path}", hint="without --policy the defaults hold") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    problems: list[str] = []
    policy = Policy()
    try:
        policy = Policy.model_validate(tree)
    except ValidationError as error:
        problems += validation_problems(error, Policy)
    problems += _unknown_measures(tree)
    if problems:
        plural = "problem" if len(problems) == 1 else "problems"
        raise ConfigError(
            f"{path}: {len(problems)} {plural}",
            problems=problems,
            hint=f"measures are {', '.join([*EXACT, *MEASURES])}",
        )
    return policy


def _unknown_measures(tree: dict[str, object]) -> list[str]:
    floors, ignore = tree.get("floors"), tree.get("ignore")
    names = [*EXACT, *MEASURES]
    problems = []
    if isinstance(floors, dict):
        problems += [
            f"floors.{name}: {name} is equal or not, and has no floor"
            if name in EXACT
            else f"floors.{name}: no such measure{did_you_mean(str(name), MEASURES)}"
            for name in floors
            if name not in MEASURES
        ]
    if isinstance(ignore, list):
        problems += [
            f"ignore: no measure {name}{did_you_mean(str(name), names)}"
            for name in ignore
            if str(name).partition(",")[0] not in names
        ]
    return problems
