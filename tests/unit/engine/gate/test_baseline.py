from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.unit.engine.gate.profiles import by_step, profile
from trainscope.engine.gate.baseline import read_baseline, record_text
from trainscope.engine.gate.profile import Broken, KnownFinding, Profile
from trainscope.errors import RunError


def recorded(folder: Path, *profiles: Profile) -> Path:
    file = folder / "baseline.json"
    file.write_text(record_text(profiles), encoding="utf-8")
    return file


def test_what_is_recorded_is_read_back(tmp_path: Path) -> None:
    finding = KnownFinding(code="X001", severity="error", fingerprint="f", message="m", first_step=3)
    odd = by_step([1.0, math.nan, math.inf, -math.inf, 2.0, 1 / 3])
    one = profile(1, findings=[finding], continuity=[Broken(what="ema", status="missing", step=3)], curves={"d": odd})
    two = profile(2)
    first, second = read_baseline(recorded(tmp_path, one, two))
    assert first.source.endswith("baseline.json")
    assert first.findings == [finding]
    assert first.continuity == one.continuity
    assert first.facts == one.facts
    assert (second.id, second.last_step) == (two.id, two.last_step)
    values = first.curves["d"].values
    assert values[:1] + values[4:] == [1.0, 2.0, pytest.approx(1 / 3, rel=1e-4)]
    assert math.isnan(values[1])
    assert values[2:4] == [math.inf, -math.inf]


def test_it_is_small_and_the_same_for_the_same_runs() -> None:
    text = record_text([profile(1)])
    assert text == record_text([profile(1)])
    assert len(text) < 20_000
    assert "source" not in json.loads(text)["runs"][0] or not json.loads(text)["runs"][0]["source"]


def damaged(change: Any) -> Any:
    content = json.loads(record_text([profile(1)]))
    change(content)
    return content


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.update(trainscope_baseline=2), "has format 2, and this trainscope reads up to 1"),
        (lambda c: c.pop("trainscope_baseline"), "is not a recorded baseline"),
        (lambda c: c.update(runs=[]), "runs: List should have at least 1 item"),
        (lambda c: c["runs"][0].pop("id"), "runs[0].id: missing"),
        (lambda c: c["runs"][0].update(curvs={}), "curvs: unknown key (did you mean curves?)"),
        (lambda c: c["runs"][0]["curves"]["gradient"].update(values="x"), "gradient"),
        (lambda c: c["runs"][0]["curves"]["gradient"].update(values=["x"]), "gradient"),
        (lambda c: c["runs"][0]["curves"]["gradient"].update(values=3), "gradient"),
        (lambda c: c["runs"][0]["curves"]["gradient"]["steps"].reverse(), "steps do not rise"),
        (lambda c: c["runs"][0]["curves"]["gradient"]["steps"].pop(), "differ in length"),
        (lambda c: c["runs"][0]["curves"]["gradient"].update(width=3), "multiple of the width 3"),
        (lambda c: c["runs"][0]["curves"]["gradient"]["weights"].__setitem__(0, -1), "greater than or equal to 0"),
        (lambda c: c["runs"][0].update(last_step=-1), "last_step"),
    ],
)
def test_a_damaged_file_is_one_error(tmp_path: Path, change: Any, said: str) -> None:
    file = tmp_path / "baseline.json"
    file.write_text(json.dumps(damaged(change)), encoding="utf-8")
    with pytest.raises(RunError) as raised:
        read_baseline(file)
    assert said in str(raised.value)
    assert str(file) in str(raised.value)
    assert raised.value.hint


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"\xff", b'{"trainscope_baseline": true}', b"[" * 100_000])
def test_what_is_no_baseline_is_one_error(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "baseline.json"
    file.write_bytes(content)
    with pytest.raises(RunError):
        read_baseline(file)
