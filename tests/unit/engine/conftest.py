"""Tiny rule folders and tables, so that no test depends on the rules that trainscope ships."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomlkit

from trainscope.engine.loader import HEADINGS, load_rule
from trainscope.engine.rule import Rule
from trainscope.engine.tables import TableSource, from_rows

README = "# Test\n" + "".join(f"\n## {heading}\n\nText.\n" for heading in HEADINGS)

SQL = """
SELECT 'group' AS where_kind, coalesce(name, 'all') AS where_name, min(step) AS first_step, max(step) AS last_step,
    max(d) / min(d) AS value, $min_growth AS threshold, 1.0 AS score, min(d) AS d0
FROM groups GROUP BY name HAVING max(d) / min(d) < $min_growth
"""

CASES = """
[[case]]
name = "stuck"
kind = "fires"
tables = { groups = [{ step = 1, d = 1e-6 }, { step = 2, d = 1e-6 }] }

[[case]]
name = "grows"
kind = "clear"
tables = { groups = [{ step = 1, d = 1e-6 }, { step = 2, d = 1e-3 }] }
"""


def header(code: str = "TST001", **changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "code": code,
        "name": "d-never-grows",
        "family": "test",
        "kind": "mechanism",
        "severity": "error",
        "summary": "d stayed near d0",
        "message": "d grew {value:.2f}x (d0 = {d0:.1e})",
        "needs": {"groups.d": {"min_rows": 2}},
        "stages": ["run"],
        "since": "0.1",
        "thresholds": {"min_growth": {"value": 1.5, "unit": "x", "why": "less is noise"}},
    }
    base.update(changes)
    return {key: value for key, value in base.items() if value is not None}


WriteRule = Callable[..., Path]
MakeRule = Callable[..., Rule]


@pytest.fixture
def rules_root(tmp_path: Path) -> Path:
    root = tmp_path / "rules"
    root.mkdir()
    return root


@pytest.fixture
def write_rule(rules_root: Path) -> WriteRule:
    def write(
        code: str = "TST001",
        *,
        sql: str = SQL,
        cases: str = CASES,
        readme: str = README,
        folder: str = "",
        **changes: Any,
    ) -> Path:
        data = header(code, **changes)
        path = rules_root / data["family"] / (folder or f"{code}-{data['name']}")
        path.mkdir(parents=True)
        (path / "rule.toml").write_text(tomlkit.dumps(data), encoding="utf-8")
        (path / "check.sql").write_text(sql, encoding="utf-8")
        (path / "cases.toml").write_text(cases, encoding="utf-8")
        (path / "README.md").write_text(readme, encoding="utf-8")
        return path

    return write


@pytest.fixture
def make_rule(write_rule: WriteRule) -> MakeRule:
    def make(code: str = "TST001", **changes: Any) -> Rule:
        return load_rule(write_rule(code, **changes))

    return make


@pytest.fixture
def stuck() -> TableSource:
    """A Prodigy run of 100 steps whose d never grew in one of two groups."""
    rows = [{"step": step, "name": "unet", "d": 1e-6, "d0": 1e-6} for step in range(1, 101)]
    rows += [{"step": step, "name": "te", "d": 1e-6 * step, "d0": 1e-6} for step in range(1, 101)]
    return from_rows(
        {"groups": rows, "config": {"optimizer.type": "prodigy", "train.steps": 100, "ema.enabled": False}}
    )
