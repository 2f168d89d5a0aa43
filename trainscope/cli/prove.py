"""`trainscope prove`: repeat the proof of rules on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trainscope.errors import RuleError

if TYPE_CHECKING:
    from trainscope.engine.rule import Rule
    from trainscope.proof.cases import Verdict


def prove(
    codes: Annotated[list[str] | None, typer.Argument(help="Codes or prefixes; all if none.", metavar="CODE…")] = None,
    rules: Annotated[list[Path] | None, typer.Option(help="More rules: a folder of them.")] = None,
) -> None:
    """Train the tiny runs of a rule's cases and show that it fires, stays silent and is cured as it says."""
    from trainscope.engine.loader import load_rules

    catalogue, _ = load_rules(rules or ())
    chosen = [rule for rule in catalogue if not codes or any(rule.code.startswith(code) for code in codes)]
    if not chosen:
        raise RuleError(f"no rule has the code {' or '.join(codes or [])}", hint="`trainscope rules list`")
    verdicts = run_cases(chosen, catalogue)
    raise typer.Exit(0 if all(verdict.holds for _, verdict in verdicts) else 1)


def run_cases(chosen: Sequence[Rule], catalogue: Sequence[Rule]) -> list[tuple[Rule, Verdict]]:
    """Run every case of some rules, with a line for each."""
    from rich.console import Console
    from rich.text import Text

    from trainscope.proof.cases import judge

    console = Console(highlight=False)
    verdicts = []
    for rule in chosen:
        console.print(Text(f"{rule.code} {rule.header.name}", style="bold"))
        for case in rule.cases:
            with console.status(f"{case.kind}: {case.name} …"):
                verdict = judge(rule, case, catalogue)
            verdicts.append((rule, verdict))
            mark, style = ("✓", "green") if verdict.holds else ("✗", "red")
            line = Text.assemble((f"  {mark} ", style), f"{case.kind}: {case.name}", f"  {_measured(verdict)}")
            console.print(line)
            if not verdict.holds:
                console.print(Text(f"    {verdict.reason}", style="red"))
    failed = sum(not verdict.holds for _, verdict in verdicts)
    console.print(f"{len(verdicts) - failed} cases hold, {failed} do not")
    return verdicts


def _measured(verdict: Verdict) -> str:
    proof = verdict.proof
    if proof is None or proof.loss_after is None:
        return ""
    healthy = f", healthy {proof.loss_healthy:.3f}" if proof.loss_healthy is not None else ""
    return f"held-out loss {proof.loss_before:.3f} → {proof.loss_after:.3f}{healthy}"
