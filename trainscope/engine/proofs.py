"""proofs.json: what `trainscope prove` measured for the rules' remedies and for the advices that they refute.

Reads the file; measures nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trainscope.errors import RuleError
from trainscope.schema import Proof

Proofs = dict[str, dict[str, dict[str, Proof]]]
"""code → "cured" or "refuted" → title of the remedy or advice → what was measured."""


def load_proofs(root: Path | str) -> Proofs:
    """The proofs of a rules root; empty where nothing was proven yet."""
    path = Path(root) / "proofs.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise RuleError(f"{path}: cannot be read: {error}", hint="`trainscope prove` writes it anew") from error
    try:
        return {
            code: {
                verdict: {title: _proof(proof) for title, proof in proofs.items()}
                for verdict, proofs in verdicts.items()
            }
            for code, verdicts in data.items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RuleError(f"{path}: not a file of proofs: {error!r}", hint="`trainscope prove` writes it anew") from error


def _proof(data: dict[str, Any]) -> Proof:
    return Proof(
        case=str(data["case"]),
        rule=data["rule"],
        loss_before=_loss(data.get("loss_before")),
        loss_after=_loss(data.get("loss_after")),
        loss_healthy=_loss(data.get("loss_healthy")),
    )


def _loss(value: Any) -> float | None:
    # Non-finite losses are strings in JSON; float() reads "NaN" and "Infinity" back.
    return None if value is None else float(value)
