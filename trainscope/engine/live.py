"""A run that goes on, judged by the rules that can tell already.

Only rules that say so in their header (`live`) are asked, each from its own share of the run on: a run that has hardly
begun is too short, has not moved and has not learned, and none of that is a finding. Opens no file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow.compute as pc

from trainscope.engine.evaluate import Overrides, evaluate
from trainscope.engine.findings import findings
from trainscope.engine.proofs import Proofs
from trainscope.engine.rule import Rule
from trainscope.engine.tables import TableSource, config_values
from trainscope.schema import Finding


def look(
    source: TableSource, rules: Sequence[Rule], thresholds: Overrides | None = None, proofs: Proofs | None = None
) -> list[Finding]:
    """What the rules find that may be asked now, the gravest first. Thresholds of other rules are ignored.

    A rule that crashes finds nothing here: the audit at the end tells.
    """
    config = config_values(source)
    done = share_done(config, last_step(source))
    asked = [rule for rule in rules if rule.header.live is not None and done >= rule.header.live]
    codes = {rule.code for rule in asked}
    wanted = {code: values for code, values in (thresholds or {}).items() if code in codes}
    return findings(evaluate(asked, source, "run", wanted), config, proofs)


def last_step(source: TableSource) -> int:
    """The last step of the log; 0 before the first."""
    table = source.tables["steps"]
    column = (table if hasattr(table, "column") else table.to_table(columns=["step"])).column("step")
    return int(pc.max(column).as_py() or 0)


def share_done(config: Mapping[str, Any], step: int) -> float:
    """The share of the planned steps after the warmup that are done; 0 within it, or where no plan is known."""
    steps, warmup = config.get("plan.steps"), config.get("plan.warmup_steps") or 0
    if not steps or step <= warmup:
        return 0.0
    return float(min(1.0, (step - warmup) / max(1, steps - warmup)))
