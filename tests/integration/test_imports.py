"""What never needs torch never imports it: help, audits, fixes, preflights, rules and configurations."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.commands import ENVIRONMENT, ROOT, config_text

HEAVY = ("torch", "diffusers", "transformers", "peft", "accelerate", "prodigyopt", "PIL")
"""The extra `train`, which an installation for auditing lacks."""

SPY = """
import json, sys
sys.argv[0] = "trainscope"
from trainscope.cli import main
try:
    main()
except SystemExit as stop:
    code = stop.code
print(json.dumps({"code": code, "modules": sorted({name.partition(".")[0] for name in sys.modules})}))
"""


def modules_of(*args: object, cwd: Path) -> set[str]:
    """The packages that a command imported, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", SPY, *map(str, args)],
        cwd=cwd,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
        check=True,
    )
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["code"] in (0, 1), (done.stdout, done.stderr)
    return set(result["modules"])


def test_help_imports_next_to_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "trainscope", "--help"],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
        check=True,
    )
    assert "audit" in done.stdout
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "trainscope" in imported
    assert not imported & {*HEAVY, "duckdb", "pyarrow", "numpy", "pandas", "scipy", "pydantic", "tomlkit"}


@pytest.mark.parametrize(
    "command",
    [
        ["audit", "RUN", "--fail-on", "never"],
        ["fix", "RUN", "--output", "fixed.toml"],
        ["gate", "RUN", "--against", "RUN"],
        ["compare", "RUN", "RUN"],
        ["sql", "RUN", "SELECT 1"],
        ["preflight", "cfg.toml"],
        ["init", "new"],
        ["config", "show"],
        ["config", "schema"],
        ["rules", "list"],
        ["rules", "show", "PREC001"],
        ["rules", "new", "OWN001", "a-name", "--family", "own"],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_commands_without_torch(command: list[str], short_run: Path, tmp_path: Path) -> None:
    (tmp_path / "cfg.toml").write_text(config_text(), encoding="utf-8")
    imported = modules_of(*(short_run if part == "RUN" else part for part in command), cwd=tmp_path)
    assert not imported & set(HEAVY)


def test_a_refused_training_does_not_wait_for_torch(tmp_path: Path) -> None:
    """The configuration is checked before anything slow is imported."""
    (tmp_path / "cfg.toml").write_text(config_text("[lora]", "rnk = 3"), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "trainscope", "run", "cfg.toml"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "lora.rnk" in done.stderr
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert not imported & set(HEAVY)


AUDIT = (
    "trainscope.cli.audit",
    "trainscope.cli.auditing",
    "trainscope.engine.audit",
    "trainscope.engine.loader",
    "trainscope.engine.preflight",
    "trainscope.engine.proofs",
    "trainscope.engine.runs",
    "trainscope.report.console",
    "trainscope.report.html",
    "trainscope.report.json",
    "trainscope.runlog.reader",
)


@pytest.mark.parametrize(
    "modules",
    [
        ", ".join(AUDIT),
        "trainscope.runlog.writer, trainscope.runlog.rundir",
        "trainscope.config.load, trainscope.config.plan, trainscope.config.describe",
        "trainscope.proof.runs, trainscope.proof.cases",
        "trainscope",
    ],
    ids=["what audit imports", "the writer", "the configuration", "proofs", "the package"],
)
def test_modules_without_torch(modules: str) -> None:
    code = f"import sys, {modules}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=True
    )
    assert not set(done.stdout.split()) & set(HEAVY) - {"PIL"}
