"""What stands in other people's repositories: the GitHub Action, the pre-commit hook, and the fixtures for pytest."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.commands import ROOT, SHAPES

ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
STEPS: dict[str, dict[str, Any]] = {step["name"]: step for step in ACTION["runs"]["steps"]}
CONFIG = f"""\
[model]
base = "tiny:sd15"

[train]
steps = 20

[data]
dir = "{SHAPES}"
resolution = 64

[optimizer]
type = "prodigy"
lr = 1e-5
"""


@pytest.fixture
def step(here: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a step of the action as GitHub does: bash, an environment of strings, inputs put in place."""
    (here / "summary.md").touch()

    def run(name: str, *, binaries: Path = Path(sys.executable).parent, **inputs: str) -> Any:
        given = {key: value["default"] for key, value in ACTION["inputs"].items()}
        given |= {key.replace("_", "-"): value for key, value in inputs.items()}
        values = {f"inputs.{key}": value for key, value in given.items()} | {"github.action_path": str(ROOT)}

        def filled(text: str) -> str:
            return re.sub(r"\$\{\{ *([\w.-]+) *\}\}", lambda found: values[found[1]], text)

        environment = {key: filled(value) for key, value in STEPS[name].get("env", {}).items()}
        assert "${{" not in STEPS[name]["run"], "what somebody wrote into an input would be run"
        return subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", STEPS[name]["run"]],
            cwd=here,
            env={
                **os.environ,
                **environment,
                "PATH": f"{binaries}:{os.environ['PATH']}",
                "GITHUB_ACTIONS": "true",
                "GITHUB_WORKSPACE": str(here),
                "GITHUB_STEP_SUMMARY": str(here / "summary.md"),
            },
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_the_action_does_what_it_says(step: Callable[..., Any], faulty_run: Path, short_run: Path, here: Path) -> None:
    (here / "my cfg.toml").write_text(CONFIG)
    told = step("Preflight", config="my cfg.toml", fail_on="warning")
    assert (told.returncode, told.stdout.count("::warning file=my cfg.toml,line=13,title=PRO101")) == (1, 1), told
    assert step("Preflight", config="my cfg.toml").returncode == 0

    told = step("Audit", run=str(faulty_run), output="out put")
    assert told.returncode == 1, told
    assert "::error " in told.stdout
    assert "PREC001" in (here / "summary.md").read_text()
    names = {"report.html", "report.json", "report.junit.xml", "report.sarif"}
    assert {path.name for path in (here / "out put").iterdir()} == names
    (here / "gate.toml").write_text('findings = "never"')
    told = step("Gate", run=str(faulty_run), against=f"{short_run}\n\n{short_run}\n", output="out put")
    assert told.returncode == 1, told
    assert {path.name for path in (here / "out put").iterdir()} == names | {"gate.json", "gate.junit.xml"}
    assert step("Gate", run=str(short_run), against=str(short_run)).returncode == 0


def test_no_input_of_the_action_is_run(step: Callable[..., Any], here: Path) -> None:
    told = step("Audit", run='$(touch forged); `touch forged` "; touch forged; "', fail_on="never; touch forged")
    assert told.returncode == 2
    assert not (here / "forged").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_action_where_nothing_is_installed(step: Callable[..., Any], faulty_run: Path, here: Path) -> None:
    venv.create(here / "fresh", with_pip=True)
    binaries = here / "fresh" / "bin"
    installed = step("Install trainscope", binaries=binaries)
    assert installed.returncode == 0, installed.stderr
    audit = step("Audit", binaries=binaries, run=str(faulty_run))
    assert audit.returncode == 1, audit.stderr
    assert (here / "trainscope-report" / "report.sarif").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_pre_commit_hook(here: Path) -> None:
    (here / "cfg.toml").write_text(CONFIG.replace("lr = 1e-5", "lr = 1.0").replace(str(SHAPES), "nowhere"))
    (here / "other.toml").write_text("not = ours")
    for command in (["init", "-q"], ["add", "."]):
        subprocess.run(["git", *command], check=True, cwd=here)
    tried = subprocess.run(
        [sys.executable, "-m", "pre_commit", "try-repo", str(ROOT), "trainscope-preflight", "--all-files", "-v"],
        cwd=here,
        env={**os.environ, "PRE_COMMIT_HOME": str(here / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert tried.returncode == 1, tried.stdout + tried.stderr
    assert "nowhere" in tried.stdout
    assert "other.toml" not in tried.stdout
