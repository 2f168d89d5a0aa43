"""A report in the formats that other programs read, and the findings that were accepted: what `audit` and `preflight`
share.
"""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from trainscope.errors import ConfigError

if TYPE_CHECKING:
    from trainscope.report.anchors import ConfigFile
    from trainscope.schema import Report

FILES = {"html": "report.html", "json": "report.json", "junit": "report.junit.xml", "sarif": "report.sarif"}
"""Formats that are files, and their names."""
SCREEN = ("console", "github")
"""Formats that are printed."""


@dataclass(frozen=True)
class Verdict:
    """A report with what decides about it: the level that fails, and the reasons of what was accepted."""

    report: Report
    fail_on: str
    accepted: Mapping[str, str] = field(default_factory=dict)

    @property
    def failing(self) -> set[str]:
        """The fingerprints of the findings that fail it."""
        from trainscope.engine.audit import fails

        found = {finding.fingerprint for finding in self.report.findings if fails(finding, self.fail_on)}
        return found - set(self.accepted)

    def render(self, name: str, place: Path, config: ConfigFile) -> str:
        """The text of one format; `place` is where a report's images lie."""
        from trainscope.schema import to_json

        plain = to_json(self.report)
        if name == "json":
            from trainscope.report.json import json_text

            return json_text(plain)
        if name == "html":
            from trainscope.report.html import render_html

            return render_html(plain, place)
        if name == "junit":
            from trainscope.report.junit import render_junit

            return render_junit(plain, failing=self.failing, accepted=self.accepted)
        if name == "sarif":
            from trainscope.report.sarif import render_sarif

            return render_sarif(plain, config, accepted=self.accepted)
        from trainscope.report.github import commands

        return commands(plain, config, accepted=self.accepted)

    def add_summary(self) -> None:
        """To the summary of a GitHub job, in one."""
        from trainscope.report.github import summary
        from trainscope.schema import to_json

        add_to_job_summary(summary(to_json(self.report), accepted=self.accepted))


def add_to_job_summary(text: str) -> None:
    """Add Markdown to the summary of a GitHub job; nothing is done elsewhere."""
    file = os.environ.get("GITHUB_STEP_SUMMARY")
    if file:
        try:
            with Path(file).open("a", encoding="utf-8") as out:
                out.write(text)
        except OSError as error:
            raise ConfigError(f"GITHUB_STEP_SUMMARY={file}: {error.strerror}") from error


def check_formats(wanted: Sequence[str], allowed: Sequence[str], given: str) -> None:
    """Refuse a format that there is not."""
    if not wanted or any(name not in allowed for name in wanted):
        raise ConfigError(f"--format {given}: allowed are {', '.join(allowed)}")


def let_pass(report: Report, file: Path | None, *, update: bool) -> dict[str, str]:
    """The reasons of accepted findings by fingerprint; with `update` the file is rewritten to what is found now."""
    from trainscope.engine.accepted import Accepted, load_accepted
    from trainscope.report.json import write_atomically

    if file is None:
        if update:
            raise ConfigError("--update-accepted: --accepted FILE says which file")
        return {}
    today = dt.datetime.now(tz=dt.UTC).date()
    accepted = Accepted() if update and not file.exists() else load_accepted(file)
    if update:
        accepted = accepted.updated(report.findings, today)
        write_atomically(file, accepted.as_toml().encode())
        typer.echo(f"{file}: {len(accepted.entries)} findings accepted; give each its reason", err=True)
    for entry in accepted.expired(report.findings, today):
        typer.echo(f"{file}: {entry.code or entry.fingerprint} was accepted until {entry.expires}", err=True)
    return accepted.reasons(today)


def tell_accepted(verdict: Verdict) -> None:
    """What was let pass, after the report on the console."""
    for finding in verdict.report.findings:
        if finding.fingerprint in verdict.accepted:
            typer.echo(f"accepted: {finding.code}: {verdict.accepted[finding.fingerprint]}")
