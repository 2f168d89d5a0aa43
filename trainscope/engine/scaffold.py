"""The four files of a new rule, to be filled in."""

from __future__ import annotations

from pathlib import Path

from trainscope import __version__
from trainscope.engine.header import CODE
from trainscope.errors import RuleError

_README = """# {code} {name}

## What happens

## Why it matters

## How trainscope sees it

`score` is …

## What to do

## When it is a false alarm
"""

_HEADER = """code = "{code}"
name = "{name}"
family = "{family}"
kind = "cause"                          # symptom | mechanism | cause | risk
severity = "error"                      # error | warning | info
summary = "…"
message = "… {{value:.3g}} …"
needs = {{ "steps.loss" = {{ min_steps = 50 }} }}
explains = []
stages = ["run"]
since = "{since}"

[thresholds]
limit = {{ value = 0.5, unit = "", why = "…" }}

[[remedies]]
title = "…"
set = {{ "precision.weights" = "fp32" }}

[[references]]
url = "https://example.org"
claim = "…"
"""

_QUERY = """-- NaN: in DuckDB NaN sorts above every number, so `value < $limit` is false for it. NULL: no row.
SELECT
    'run' AS where_kind,
    'run' AS where_name,
    min(step) AS first_step,
    max(step) AS last_step,
    avg(loss) AS value,
    $limit AS threshold,
    1.0 AS score
FROM steps
HAVING avg(loss) > $limit
"""

_CASES = """[[case]]
name = "…"
kind = "fires"
runs = [{ set = {} }]

[[case]]
name = "healthy"
kind = "clear"
runs = [{ set = {} }]
"""


def write_rule(root: Path, *, family: str, code: str, name: str) -> Path:
    """Write `root/family/CODE-name/`. Raises `RuleError` if the code is malformed or taken."""
    if not CODE.match(code):
        raise RuleError(f"code {code}: two to five capitals and three digits, such as EMA007")
    taken = [folder for folder in root.glob(f"*/{code}-*") if folder.is_dir()]
    if taken:
        raise RuleError(f"code {code} is taken by {taken[0]}")
    folder = root / family / f"{code}-{name}"
    folder.mkdir(parents=True)
    since = ".".join(__version__.split(".")[:2])
    for file, text in (("README.md", _README), ("rule.toml", _HEADER)):
        (folder / file).write_text(text.format(code=code, name=name, family=family, since=since), encoding="utf-8")
    (folder / "check.sql").write_text(_QUERY, encoding="utf-8")
    (folder / "cases.toml").write_text(_CASES, encoding="utf-8")
    return folder
