from __future__ import annotations

from pathlib import Path

import pytest

from trainscope.engine import loader
from trainscope.engine.loader import load_rule, load_rules, rule_folders
from trainscope.errors import RuleError

from .conftest import README, MakeRule, WriteRule


def load(*paths: Path, strict: bool = False):  # type: ignore[no-untyped-def]
    return load_rules(paths, strict=strict, builtin=False)


def test_a_root_a_family_and_a_rule_folder(write_rule: WriteRule, rules_root: Path) -> None:
    one = write_rule("TST001")
    two = write_rule("OTH001", family="other")
    assert [rule.code for rule in load(rules_root)[0]] == ["OTH001", "TST001"]
    assert [rule.code for rule in load(rules_root / "test")[0]] == ["TST001"]
    assert [rule.code for rule in load(two)[0]] == ["OTH001"]
    assert [rule.code for rule in load(rules_root, one, one)[0]] == ["OTH001", "TST001"], "each folder once"


def test_a_rule_has_what_its_files_say(make_rule: MakeRule) -> None:
    rule = make_rule()
    assert rule.header.name == "d-never-grows"
    assert "HAVING" in rule.sql
    assert rule.readme == README
    assert rule.thresholds == {"min_growth": 1.5}
    assert [case.name for case in rule.cases] == ["stuck", "grows"]


def test_the_rules_of_the_package_come_first(
    write_rule: WriteRule, rules_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rule("TST001")
    monkeypatch.setattr(loader, "builtin_root", lambda: rules_root)
    extra = tmp_path / "mine" / "own" / "OWN001-x"
    extra.mkdir(parents=True)
    rules, broken = load_rules([tmp_path / "mine"])
    assert [rule.code for rule in rules] == ["TST001"]
    assert [name for name, _ in broken] == ["OWN001"]


def test_a_broken_rule_does_not_stop_the_others(write_rule: WriteRule, rules_root: Path) -> None:
    write_rule("TST001")
    write_rule("TST002", sql="DELETE FROM groups")
    write_rule("TST003", kind="smell")
    (write_rule("TST004") / "rule.toml").write_text("code = ")
    (write_rule("TST005") / "rule.toml").unlink()
    (write_rule("TST006") / "check.sql").write_bytes(b"SELECT '\xff'")
    rules, broken = load(rules_root)
    assert [rule.code for rule in rules] == ["TST001"]
    assert [name for name, _ in broken] == ["TST002", "TST003", "TST004", "TST005", "TST006"]
    reasons = dict(broken)
    assert "check.sql: a rule is one SELECT, found DELETE" in reasons["TST002"]
    assert "kind:" in reasons["TST003"]
    assert "rule.toml: not TOML" in reasons["TST004"]
    assert "rule.toml: missing" in reasons["TST005"]
    assert "check.sql: not UTF-8 text" in reasons["TST006"]


def test_strict_raises_one_error_with_everything(write_rule: WriteRule, rules_root: Path) -> None:
    write_rule("TST001", readme=README.replace("## What to do", "## What you do"))
    write_rule("TST002", sql="SELECT $nothing FROM groups WHERE d < $min_growth", severity="bad")
    write_rule("TST003", cases="[[case]]\nname = 'x'\n")
    write_rule("TST004", folder="TST004-other-name")
    write_rule("TST005", sql="SELECT $nothing FROM groups WHERE d < $min_growth")
    with pytest.raises(RuleError) as error:
        load(rules_root, strict=True)
    text = str(error.value)
    assert "README.md: no heading 'What to do'" in text
    assert "severity:" in text
    assert "cases.toml: case[0].kind: missing" in text
    assert "the folder must be named TST004-d-never-grows, found TST004-other-name" in text
    assert "no threshold for $nothing" in text
    assert text.startswith("5 problems")
    assert all(": " in line for line in text.splitlines()[1:])


def test_the_cases_are_no_matter_of_an_audit(write_rule: WriteRule, rules_root: Path) -> None:
    path = write_rule("TST001", cases="not toml")
    rules, broken = load(rules_root)
    assert broken == []
    with pytest.raises(RuleError, match=r"cases\.toml: not TOML"):
        _ = rules[0].cases
    (path / "cases.toml").unlink()
    with pytest.raises(RuleError, match=r"cases\.toml: missing"):
        load(rules_root, strict=True)


def test_family_and_folder(write_rule: WriteRule, rules_root: Path) -> None:
    write_rule("TST001", family="test").rename(rules_root / "TST001-d-never-grows")
    with pytest.raises(RuleError, match="must lie in a folder test"):
        load(rules_root, strict=True)


def test_a_path_without_rules_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuleError, match="no such folder"):
        load(tmp_path / "nothing")
    with pytest.raises(RuleError, match="no rules in it"):
        load(tmp_path)


def test_hidden_and_private_folders_are_left_alone(write_rule: WriteRule, rules_root: Path) -> None:
    write_rule("TST001")
    (rules_root / ".git" / "TST002-x").mkdir(parents=True)
    (rules_root / "_drafts" / "TST003-x").mkdir(parents=True)
    assert len(rule_folders(rules_root)) == 1


def test_load_rule_alone(write_rule: WriteRule) -> None:
    with pytest.raises(RuleError, match="1 problem in"):
        load_rule(write_rule("TST001", kind="smell"))


class TestCatalogue:
    def test_codes_are_unique(self, write_rule: WriteRule, rules_root: Path) -> None:
        write_rule("TST001")
        write_rule("TST001", name="other")
        rules, broken = load(rules_root)
        assert len(rules) == 1
        assert "code TST001 is taken by" in broken[0][1]

    def test_explains_must_exist(
        self, write_rule: WriteRule, rules_root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_rule("TST001", explains=["SYM002"])
        write_rule("SYM001", kind="symptom", name="nothing-learned")
        assert load(rules_root, strict=True)[1] == [], "a part of a catalogue may point outside"
        monkeypatch.setattr(loader, "builtin_root", lambda: rules_root)
        with pytest.raises(RuleError, match=r"explains SYM002: no such rule \(did you mean SYM001\?\)"):
            load_rules(strict=True)

    def test_explaining_a_broken_rule_is_no_mistake(
        self, write_rule: WriteRule, rules_root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_rule("TST001", explains=["SYM001"])
        write_rule("SYM001", kind="symptom", sql="DROP TABLE x")
        monkeypatch.setattr(loader, "builtin_root", lambda: rules_root)
        rules, broken = load_rules()
        assert [rule.code for rule in rules] == ["TST001"]
        assert [name for name, _ in broken] == ["SYM001"]

    @pytest.mark.parametrize(
        ("kind", "explained", "fine"),
        [
            ("cause", "mechanism", True),
            ("cause", "symptom", True),
            ("cause", "cause", False),
            ("mechanism", "mechanism", True),
            ("mechanism", "symptom", True),
            ("mechanism", "cause", False),
            ("symptom", "symptom", False),
            ("symptom", "cause", False),
            ("cause", "risk", False),
            ("risk", "cause", True),
            ("risk", "risk", True),
        ],
    )
    def test_directions(self, write_rule: WriteRule, rules_root: Path, kind: str, explained: str, fine: bool) -> None:
        write_rule("TST001", kind=kind, explains=["TST002"])
        write_rule("TST002", kind=explained)
        broken = load(rules_root)[1]
        assert [name for name, _ in broken] == ([] if fine else ["TST001"])

    def test_no_cycles(self, write_rule: WriteRule, rules_root: Path) -> None:
        write_rule("TST001", explains=["TST002"])
        write_rule("TST002", explains=["TST003"])
        write_rule("TST003", explains=["TST001"])
        write_rule("TST004", explains=["TST001"])
        rules, broken = load(rules_root)
        assert [rule.code for rule in rules] == ["TST004"]
        assert "TST001 -> TST002 -> TST003 -> TST001" in dict(broken)["TST001"]
