"""The same in a project's own tests: the fixtures come with trainscope."""

import subprocess


def test_training(tmp_path, trainscope_audit, trainscope_gate):
    subprocess.run(["trainscope", "run", "cfg.toml", "--out", tmp_path / "run", "--no-audit"], check=True)
    trainscope_audit(tmp_path / "run", fail_on="error")
    trainscope_gate(tmp_path / "run", "baseline.json", policy="gate.toml")
