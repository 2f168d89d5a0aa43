"""What the rules said of each run, a row a rule that fired on one of them. Judges nothing itself."""

from __future__ import annotations

from collections.abc import Sequence

from trainscope.engine.compare.read import ObservedRun
from trainscope.engine.compare.result import FindingCell, FindingRow
from trainscope.schema import SEVERITIES, Finding


def finding_rows(runs: Sequence[ObservedRun]) -> tuple[FindingRow, ...]:
    """The gravest first; of those alike what few runs have, since it sets them apart."""
    found: dict[str, Finding] = {}
    for run in runs:
        for finding in run.report.findings:
            known = found.setdefault(finding.code, finding)
            if SEVERITIES.index(finding.severity) > SEVERITIES.index(known.severity):
                found[finding.code] = finding
    rows = [
        FindingRow(one.code, one.name, one.severity, one.summary, tuple(_cell(one.code, run) for run in runs))
        for one in found.values()
    ]
    return tuple(sorted(rows, key=lambda row: (-SEVERITIES.index(row.severity), _count(row), row.code)))


def _count(row: FindingRow) -> int:
    return sum(cell.outcome == "fired" for cell in row.cells)


def _cell(code: str, run: ObservedRun) -> FindingCell:
    for finding in run.report.findings:
        if finding.code == code:
            return FindingCell("fired", finding.message, finding.first_step)
    for rule in run.report.rules:
        if rule.code == code:
            return FindingCell(rule.outcome, rule.reason)
    return FindingCell("not_asked")
