"""Findings that somebody has accepted, in a file to commit: by fingerprint, with a reason and a day when it ends.

Knows nothing of runs.
"""

from __future__ import annotations

import datetime as dt
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trainscope.engine.problems import in_file, validation_problems
from trainscope.errors import ConfigError
from trainscope.schema import Finding

LASTS = dt.timedelta(days=90)
"""How long what --update-accepted adds is accepted: nothing is forgotten for good."""


class Entry(BaseModel):
    """One accepted finding."""

    model_config = ConfigDict(extra="forbid")
    fingerprint: str = Field(min_length=1)
    code: str = ""
    reason: str = Field(min_length=1)
    expires: dt.date


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")
    accepted: list[Entry] = []


@dataclass(frozen=True)
class Accepted:
    """The entries of a file."""

    entries: tuple[Entry, ...] = ()

    def reasons(self, today: dt.date) -> dict[str, str]:
        """Of those in force, by fingerprint."""
        return {entry.fingerprint: entry.reason for entry in self.entries if entry.expires >= today}

    def expired(self, findings: Sequence[Finding], today: dt.date) -> list[Entry]:
        """Entries of these findings that are in force no more."""
        there = {finding.fingerprint for finding in findings}
        return [entry for entry in self.entries if entry.expires < today and entry.fingerprint in there]

    def updated(self, findings: Sequence[Finding], today: dt.date) -> Accepted:
        """One entry for each finding: what was in force is kept, what does not occur any more is dropped."""
        known = {entry.fingerprint: entry for entry in self.entries}
        entries = []
        for finding in findings:
            entry = known.get(finding.fingerprint)
            reason = entry.reason if entry else f"accepted on {today}; say why: {finding.message}"
            if entry is None or entry.expires < today:
                entry = Entry(fingerprint=finding.fingerprint, code=finding.code, reason=reason, expires=today + LASTS)
            entries.append(entry)
        return Accepted(tuple(entries))

    def as_toml(self) -> str:
        import tomlkit  # only writing needs it

        document = tomlkit.document()
        document.add(tomlkit.comment("Findings that `trainscope audit --accepted` lets pass until they expire."))
        tables = tomlkit.aot()
        for entry in self.entries:
            table = tomlkit.table()
            table.update(entry.model_dump())
            tables.append(table)
        if self.entries:
            document.add("accepted", tables)
        return str(tomlkit.dumps(document))


def load_accepted(path: Path) -> Accepted:
    """Raises `ConfigError` with everything that is wrong with the file."""
    try:
        found: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"--accepted {path}: there is no such file", hint="--update-accepted writes one with what is found now"
        ) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"--accepted {path}: cannot be read: {error}") from error
    try:
        entries = _File.model_validate(found).accepted
    except ValidationError as error:
        raise ConfigError(
            "the accepted findings cannot be read:",
            problems=in_file(path, validation_problems(error, _File)),
            hint="each [[accepted]] has fingerprint, reason and expires (a date), and code for people to read",
        ) from error
    twice = sorted(
        {e.fingerprint for n, e in enumerate(entries) if e.fingerprint in {o.fingerprint for o in entries[:n]}}
    )
    if twice:
        raise ConfigError(f"--accepted {path}: more than once: {', '.join(twice)}")
    return Accepted(tuple(entries))
