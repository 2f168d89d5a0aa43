"""Fixtures for pytest: a test fails by what a training run shows. pytest finds them where trainscope is installed.

Imports nothing until a test asks, since every run of pytest loads this. Must not know how a run was made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from trainscope.schema import GateResult, Report


@pytest.fixture
def trainscope_audit() -> Callable[..., Report]:
    """`trainscope_audit(run_dir, fail_on="error", select=(), ignore=(), accepted=None)` gives the report.

    The test fails where `trainscope audit` would exit with 1 or 3.
    """

    def audit(
        run: Path | str,
        fail_on: str = "error",
        select: Sequence[str] = (),
        ignore: Sequence[str] = (),
        accepted: Path | str | None = None,
    ) -> Report:
        from trainscope.cli.auditing import audit_run, check_level
        from trainscope.cli.formats import Verdict, let_pass

        check_level(fail_on)
        report = audit_run(Path(run), select=select, ignore=ignore)
        verdict = Verdict(report, fail_on, let_pass(report, Path(accepted) if accepted else None, update=False))
        lines = [f"{rule.code} crashed: {rule.reason}" for rule in report.rules if rule.outcome == "crashed"]
        for finding in report.findings:
            if finding.fingerprint in verdict.failing:
                lines.append(f"{finding.code} {finding.severity}: {finding.message}")
                lines += [f"    {remedy.title}: {remedy.config_patch}" for remedy in finding.remedies[:1]]
        if lines:
            pytest.fail("\n".join([f"{run}: {report.verdict}", *lines]), pytrace=False)
        return report

    return audit


@pytest.fixture
def trainscope_gate() -> Callable[..., GateResult]:
    """`trainscope_gate(run_dir, *baselines, policy=None, strict=False)` gives the result.

    Baselines are run directories or recorded files. The test fails where `trainscope gate` would.
    """

    def gate(
        run: Path | str, *baselines: Path | str, policy: Path | str | None = None, strict: bool = False
    ) -> GateResult:
        from trainscope.cli.gate import judged
        from trainscope.engine.gate.policy import read_policy
        from trainscope.report.gate_ci import failures
        from trainscope.schema import to_json

        checked = read_policy(Path(policy) if policy else None)
        result = judged(Path(run), [Path(each) for each in baselines], checked, strict=strict)
        if result.verdict == "fail" or result.crashed:
            pytest.fail("\n".join([f"{run}: {result.summary}", *failures(to_json(result))]), pytrace=False)
        return result

    return gate
