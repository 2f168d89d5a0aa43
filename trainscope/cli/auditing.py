"""What `run`, `audit` and `fix` share: a run directory → a report, and a report → files and screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainscope.errors import ConfigError
from trainscope.schema import SEVERITIES

if TYPE_CHECKING:
    from trainscope.config.load import ResolvedConfig
    from trainscope.engine.rule import Rule
    from trainscope.schema import Report

LEVELS = ("error", "warning", "info", "never")


def audit_run(
    path: Path,
    *,
    rules: Sequence[Path] = (),
    select: Sequence[str] = (),
    ignore: Sequence[str] = (),
) -> Report:
    """Audit a run directory with trainscope's rules and those under `rules`."""
    from trainscope.engine.audit import audit
    from trainscope.engine.loader import builtin_root, load_rules
    from trainscope.engine.proofs import load_proofs
    from trainscope.engine.runs import facts_of, info_of, source_of
    from trainscope.runlog.reader import read_run

    run = read_run(path)
    source = source_of(run)
    catalogue, broken = load_rules(rules)
    return audit(
        source,
        info_of(run),
        rules=catalogue,
        broken=broken,
        stage="run",
        select=select,
        ignore=ignore,
        thresholds=thresholds_of(run.config_rows()),
        proofs=load_proofs(builtin_root()),
        config_text=run.config_text,
        facts=facts_of(run, source),
    )


def check_thresholds(resolved: ResolvedConfig) -> None:
    """Raise `ConfigError` for thresholds that no rule has: before a training, and not at the audit after it."""
    from trainscope.engine.evaluate import check_overrides
    from trainscope.engine.loader import load_rules

    rules, broken = load_rules()
    rows = [{"key": key, "value": value} for key, value, _ in resolved.rows()]
    check_overrides(thresholds_of(rows), rules, also_known=[name for name, _ in broken])


def thresholds_of(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """`audit.thresholds.<CODE>.<name>` of a resolved configuration."""
    thresholds: dict[str, dict[str, Any]] = {}
    for row in rows:
        section, _, rest = row["key"].partition("audit.thresholds.")
        if not section and rest:
            code, _, name = rest.partition(".")
            thresholds.setdefault(code, {})[name] = row["value"]
    return thresholds


def configured_fail_on(path: Path) -> str:
    """`audit.fail_on` of a run's own configuration."""
    from trainscope.runlog.reader import read_run

    rows = {row["key"]: row["value"] for row in read_run(path).config_rows()}
    return str(rows.get("audit.fail_on", "error"))


def check_level(fail_on: str) -> None:
    """Refuse a level that is none, before anything is done."""
    if fail_on not in LEVELS:
        raise ConfigError(f"--fail-on {fail_on}: allowed are {', '.join(LEVELS)}")


@dataclass(frozen=True)
class FailFast:
    """Which findings stop a training: those at or above a level, or those whose code begins so."""

    wanted: str

    def matches(self, code: str, severity: str) -> bool:
        if self.wanted in SEVERITIES:
            ranks = [str(known) for known in SEVERITIES]
            return ranks.index(severity) >= ranks.index(self.wanted)
        return code.startswith(self.wanted)


def fail_fast(wanted: str, rules: Sequence[Rule]) -> FailFast:
    """`--fail-fast`. Raises `ConfigError` for what is no level, and no code of a rule that is asked while training."""
    live = sorted(rule.code for rule in rules if rule.header.live is not None)
    if wanted in SEVERITIES or any(code.startswith(wanted) for code in live if wanted):
        return FailFast(wanted)
    levels = f"allowed are {', '.join(reversed(SEVERITIES))}, or a code"
    if wanted and any(rule.code.startswith(wanted) for rule in rules):
        raise ConfigError(
            f"--fail-fast {wanted}: only the end of a run can tell; {levels} of {', '.join(live)}",
            hint=f"--fail-on looks at the end; `trainscope rules show {wanted}` explains the rule",
        )
    raise ConfigError(f"--fail-fast {wanted}: no rule begins so; {levels}", hint="`trainscope rules list` shows all")


def listed(text: str) -> list[str]:
    """The parts of an option that takes several values with commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def write_reports(report: Report, run_dir: Path, files: Mapping[str, Path]) -> None:
    """Write the report in each format ("json", "html") to its file, which is replaced at once or not at all."""
    from trainscope.report.html import render_html
    from trainscope.report.json import write_atomically, write_json
    from trainscope.schema import to_json

    if "json" in files:
        write_json(report, files["json"])
    if "html" in files:
        write_atomically(files["html"], render_html(to_json(report), run_dir).encode())


def show(report: Report, run_dir: Path) -> None:
    """The report on the console."""
    from rich.console import Console

    from trainscope.report.console import print_report
    from trainscope.schema import to_json

    print_report(to_json(report), Console(), run_dir=run_dir)
