"""The built wheel carries the rules: it lists the same as the checkout does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIST = "from trainscope.cli import main; main()"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    [wheel] = folder.glob("trainscope-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(folder / "site"), str(wheel)], check=True)
    return folder / "site"


def rules_of(path: Path, cwd: Path) -> object:
    # -P and an own path: neither the working folder nor the editable install may stand in.
    code = (
        f"import sys; sys.path.insert(0, {str(path)!r}); sys.argv[1:] = ['rules', 'list', '--format', 'json']; {LIST}"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=cwd, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def test_the_wheel_lists_the_same_rules(installed: Path, tmp_path: Path) -> None:
    assert (installed / "trainscope" / "_rules").is_dir()
    assert rules_of(installed, tmp_path) == rules_of(ROOT, tmp_path)


def test_the_wheel_has_what_the_report_needs(installed: Path) -> None:
    names = {path.relative_to(installed / "trainscope").as_posix() for path in (installed / "trainscope").rglob("*")}
    assert {"py.typed", "report/schema.json", "report/templates/report.html", "_rules/proofs.json"} <= names
    assert {"report/plotly/plotly-cartesian.min.js", "report/plotly/LICENSE"} <= names
    assert not [name for name in names if "axe" in name], "what tests inject into pages is not shipped"


USES = """
import pytest

def test_a_run_with_nothing_wrong(trainscope_audit):
    assert trainscope_audit({good!r}, ignore=["SCH", "SYM"]).findings == []

def test_a_run_with_an_error(trainscope_audit):
    trainscope_audit({bad!r})

def test_another_run(trainscope_gate):
    trainscope_gate({bad!r}, {good!r}, policy="gate.toml")

def test_the_same_run(trainscope_gate):
    assert trainscope_gate({good!r}, {good!r}, policy="gate.toml").verdict == "pass"
"""


def test_the_wheel_brings_fixtures_for_pytest(
    installed: Path, tmp_path: Path, short_run: Path, faulty_run: Path
) -> None:
    (tmp_path / "gate.toml").write_text('findings = "never"')
    (tmp_path / "test_training.py").write_text(USES.format(good=str(short_run), bad=str(faulty_run)))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--rootdir", str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        check=False,
        capture_output=True,
        text=True,
    )
    assert "2 failed, 2 passed" in done.stdout, done.stdout + done.stderr
    assert "PREC001 error: only " in done.stdout
    assert "effective-lr, unet: " in done.stdout
