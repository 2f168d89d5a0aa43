"""A loaded rule. What its files mean is in `header`, `query` and `cases`; how they are found is in `loader`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from trainscope.engine.cases import Case, parse_cases
from trainscope.engine.header import RuleHeader
from trainscope.engine.problems import in_file
from trainscope.errors import RuleError


@dataclass(frozen=True, eq=False)
class Rule:
    header: RuleHeader
    sql: str
    readme: str
    folder: Path

    @property
    def code(self) -> str:
        return self.header.code

    @cached_property
    def thresholds(self) -> dict[str, Any]:
        return {name: threshold.value for name, threshold in self.header.thresholds.items()}

    @cached_property
    def cases(self) -> tuple[Case, ...]:
        """Read on demand: an audit needs no cases, and they are most of a rule's text. RuleError if they are wrong."""
        cases, problems = read_cases(self.folder, self.header)
        if problems:
            raise RuleError("\n".join(problems))
        return cases


def read_cases(folder: Path, header: RuleHeader) -> tuple[tuple[Case, ...], list[str]]:
    """The cases and their problems, each problem with its file."""
    path = folder / "cases.toml"
    try:
        cases, problems = parse_cases(path.read_text(encoding="utf-8"), header)
    except (OSError, UnicodeDecodeError) as error:
        return (), in_file(path, [reason(error)])
    return cases, in_file(path, problems)


def reason(error: OSError | UnicodeDecodeError) -> str:
    if isinstance(error, FileNotFoundError):
        return "missing"
    return "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else error.strerror or str(error)
