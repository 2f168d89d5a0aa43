from __future__ import annotations

from pathlib import Path

import pytest

from trainscope.engine.gate.policy import Policy, read_policy
from trainscope.errors import ConfigError


def policy(folder: Path, text: str) -> Policy:
    file = folder / "gate.toml"
    file.write_text(text, encoding="utf-8")
    return read_policy(file)


def test_without_a_file_the_defaults_hold() -> None:
    assert read_policy(None) == Policy(false_discovery_rate=0.01, strict=False, findings="error", ignore=[], floors={})


def test_a_policy_is_read(tmp_path: Path) -> None:
    read = policy(
        tmp_path,
        """
        false_discovery_rate = 0.05
        strict = true
        findings = "warning"
        ignore = ["memory", "loss, low noise"]
        [floors.heldout-loss]
        relative = 0.01
        """,
    )
    assert (read.false_discovery_rate, read.strict, read.findings) == (0.05, True, "warning")
    assert (read.floors["heldout-loss"].relative, read.floors["heldout-loss"].absolute) == (0.01, 0.0)
    assert read.ignores("memory", "")
    assert read.ignores("loss", "low noise")
    assert not read.ignores("loss", "high noise")


def test_everything_wrong_is_said_at_once_with_what_was_perhaps_meant(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        policy(
            tmp_path,
            """
            false_discovery = 0.05
            findings = "bad"
            ignore = ["througput"]
            [floors.held-out-loss]
            relative = 0.01
            [floors.gradient]
            relativ = -1
            [floors.setup]
            absolute = 1
            """,
        )
    message = str(raised.value)
    for part in (
        "6 problems",
        "false_discovery: unknown key (did you mean false_discovery_rate?)",
        "findings: Input should be 'error', 'warning', 'info' or 'never', found 'bad'",
        "ignore: no measure througput (did you mean throughput?)",
        "floors.held-out-loss: no such measure (did you mean heldout-loss?)",
        "floors.gradient.relativ: unknown key",
        "floors.setup: setup is equal or not, and has no floor",
    ):
        assert part in message
    assert "heldout-loss" in (raised.value.hint or "")


@pytest.mark.parametrize(
    "text",
    [
        "false_discovery_rate = 0",
        "false_discovery_rate = 0.5",
        "strict = 7",
        "ignore = 'memory'",
        "floors = 3",
        "[floors.memory]\nrelative = nan",
        "[floors.memory]\nrelative = -0.1",
        "= 3",
    ],
)
def test_a_bad_value_is_one_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError):
        policy(tmp_path, text)


def test_a_policy_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such policy"):
        read_policy(tmp_path / "gate.toml")
