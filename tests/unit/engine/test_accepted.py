"""Accepted findings: read strictly, in force until a day, rewritten without losing a reason."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trainscope.engine.accepted import LASTS, Accepted, load_accepted
from trainscope.errors import ConfigError
from trainscope.schema import Finding

TODAY = dt.date(2026, 5, 1)


def finding(fingerprint: str, **changes: Any) -> Finding:
    plain = Finding(
        code="PREC001",
        name="bf16-updates-lost",
        family="precision",
        kind="cause",
        severity="error",
        summary="",
        message="updates are lost",
        where=[],
        first_step=None,
        last_step=None,
        value=None,
        threshold=None,
        score=1.0,
        evidence={},
        remedies=[],
        refuted=[],
        references=[],
        plots=[],
        fingerprint=fingerprint,
    )
    return replace(plain, **changes)


def written(folder: Path, text: str) -> Path:
    file = folder / "accepted.toml"
    file.write_text(text)
    return file


def entry(fingerprint: str, expires: str, reason: str = "small card") -> str:
    return f'[[accepted]]\nfingerprint = "{fingerprint}"\nreason = "{reason}"\nexpires = {expires}\n'


def test_an_entry_is_in_force_through_its_last_day(tmp_path: Path) -> None:
    accepted = load_accepted(written(tmp_path, entry("a", "2026-05-01") + entry("b", "2026-04-30")))
    assert accepted.reasons(TODAY) == {"a": "small card"}
    assert [e.fingerprint for e in accepted.expired([finding("b")], TODAY)] == ["b"]
    assert accepted.expired([finding("c")], TODAY) == []


def test_an_update_keeps_reasons_drops_what_is_gone_and_renews(tmp_path: Path) -> None:
    text = entry("kept", "2026-05-09", "mine") + entry("gone", "2027-01-01") + entry("old", "2026-01-01", "was mine")
    found = [finding("kept"), finding("old"), finding("new", code="EMA001")]
    updated = load_accepted(written(tmp_path, text)).updated(found, TODAY)
    again = load_accepted(written(tmp_path, updated.as_toml()))
    assert again == updated
    by_name = {e.fingerprint: e for e in again.entries}
    assert list(by_name) == ["kept", "old", "new"]
    assert (by_name["kept"].reason, by_name["kept"].expires) == ("mine", dt.date(2026, 5, 9))
    assert (by_name["old"].reason, by_name["old"].expires) == ("was mine", TODAY + LASTS)
    assert by_name["new"].code == "EMA001"
    assert "say why" in by_name["new"].reason


def test_nothing_to_accept_is_a_file_too(tmp_path: Path) -> None:
    assert load_accepted(written(tmp_path, Accepted().updated([], TODAY).as_toml())) == Accepted()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("accepted = 3", "accepted"),
        ("[[acepted]]", "unknown key (did you mean accepted?)"),
        ('[[accepted]]\nfingerprint = "a"\nexpires = 2026-01-01', "reason: missing"),
        ('[[accepted]]\nfingerprint = "a"\nreason = ""\nexpires = 2026-01-01', "reason"),
        (entry("a", '"someday"'), "expires"),
        (entry("a", "2026-01-01") * 2, "more than once: a"),
        ("[[accepted", "cannot be read"),
    ],
)
def test_bad_files_are_one_clear_error(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_accepted(written(tmp_path, text))
    assert says in "\n".join([str(error.value), *error.value.problems])


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file") as error:
        load_accepted(tmp_path / "none.toml")
    assert "--update-accepted" in str(error.value.hint)
