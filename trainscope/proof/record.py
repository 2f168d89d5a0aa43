"""rules/proofs.json: what the reruns measured, for reports to show beside a remedy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainscope.engine.rule import Rule
from trainscope.proof.cases import Verdict
from trainscope.schema import to_json

DIGITS = 4
"""Losses are rounded to these decimals, so that the file does not change with every machine's last bits."""


def write_proofs(root: Path, verdicts: Sequence[tuple[Rule, Verdict]]) -> None:
    """Write the proofs of the cases that hold; rules that were not run keep theirs."""
    path = root / "proofs.json"
    proofs: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for code in {rule.code for rule, _ in verdicts}:
        proofs.pop(code, None)
    for rule, verdict in verdicts:
        case, proof = verdict.case, verdict.proof
        if proof is None or not verdict.holds:
            continue
        title = case.remedy if case.kind == "cured" else case.advice
        plain = {key: round(value, DIGITS) if isinstance(value, float) else value for key, value in vars(proof).items()}
        # Of several cases for one remedy the first is the one to tell.
        proofs.setdefault(rule.code, {}).setdefault(case.kind, {}).setdefault(title, to_json(plain))
    path.write_text(json.dumps(proofs, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
