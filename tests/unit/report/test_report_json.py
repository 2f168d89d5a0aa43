import json
import re

import pytest

from trainscope.errors import RunError
from trainscope.report.json import read_json, write_json
from trainscope.report.json_schema import SCHEMA_FILE, json_schema, schema_text
from trainscope.schema import to_json


def problems(value, schema, root, where="report"):
    """A checker for the part of JSON Schema that schema.json uses; anything else in it is an error."""
    known = {
        "$schema",
        "$id",
        "$defs",
        "title",
        "description",
        "$ref",
        "type",
        "properties",
        "required",
        "items",
        "anyOf",
        "enum",
        "const",
        "additionalProperties",
    }
    assert set(schema) <= known, set(schema) - known
    if "$ref" in schema:
        return problems(value, root["$defs"][schema["$ref"].rpartition("/")[2]], root, where)
    if "anyOf" in schema:
        each = [problems(value, option, root, where) for option in schema["anyOf"]]
        return [] if [] in each else each[0]
    if "enum" in schema and value not in schema["enum"]:
        return [f"{where}: {value!r} is none of {schema['enum']}"]
    if "const" in schema and value != schema["const"]:
        return [f"{where}: {value!r} is not {schema['const']!r}"]
    python = {
        "object": dict,
        "array": list,
        "string": str,
        "integer": int,
        "number": (int, float),
        "boolean": bool,
        "null": type(None),
    }
    kind = schema.get("type")
    if kind and (not isinstance(value, python[kind]) or (isinstance(value, bool) and kind != "boolean")):
        return [f"{where}: {value!r} is not of type {kind}"]
    found = []
    if kind == "object":
        found += [f"{where}: {key} is missing" for key in schema.get("required", []) if key not in value]
        more = schema.get("additionalProperties")
        for key, item in value.items():
            inner = schema.get("properties", {}).get(key, more if isinstance(more, dict) else {})
            found += problems(item, inner, root, f"{where}.{key}")
    if kind == "array":
        for index, item in enumerate(value):
            found += problems(item, schema.get("items", {}), root, f"{where}[{index}]")
    return found


def test_what_is_written_is_read(s0, reports, tmp_path):
    path = tmp_path / "report.json"
    write_json(reports.s0_report(), path)
    assert read_json(path) == s0
    assert not list(tmp_path.glob("*.tmp"))


def test_non_finite_numbers_are_strings_and_lone_surrogates_do_not_stop_the_writing(reports, tmp_path):
    report = reports.clean_report()
    report.run.update(loss=float("nan"), most=float("inf"), name="\ud800 ok")
    write_json(report, tmp_path / "report.json")
    run = read_json(tmp_path / "report.json")["run"]
    assert (run["loss"], run["most"], run["name"]) == ("NaN", "Infinity", "? ok")
    assert not re.search(r"[^\"]NaN", (tmp_path / "report.json").read_text())


def test_a_failed_write_leaves_the_old_report(reports, tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    write_json(reports.clean_report(), path)
    old = path.read_bytes()
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(RunError, match="No space left"):
        write_json(reports.s0_report(), path)
    assert path.read_bytes() == old
    assert [file.name for file in tmp_path.iterdir()] == ["report.json"]


def test_a_folder_that_does_not_exist_is_a_run_error(reports, tmp_path):
    with pytest.raises(RunError, match="cannot write"):
        write_json(reports.clean_report(), tmp_path / "absent" / "report.json")


def test_a_newer_format_says_upgrade(s0, tmp_path):
    s0["format"] = 2
    (tmp_path / "report.json").write_text(json.dumps(s0))
    with pytest.raises(RunError, match="format 2") as caught:
        read_json(tmp_path / "report.json")
    assert "upgrade" in caught.value.hint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("format"), "`format` is None"),
        (lambda r: r.update(format="1"), "`format` is '1'"),
        (lambda r: r.update(format=True), "`format` is True"),
        (lambda r: r.update(format=0), "`format` is 0"),
        (lambda r: r.pop("rules"), "rules: Field required"),
        (lambda r: r["findings"][0].update(value="much"), r"findings\.0\.value"),
        (lambda r: r["rules"][0].update(outcome="maybe"), r"rules\.0\.outcome"),
    ],
)
def test_a_damaged_report_names_the_place(s0, tmp_path, change, message):
    change(s0)
    (tmp_path / "report.json").write_text(json.dumps(s0))
    with pytest.raises(RunError, match=message):
        read_json(tmp_path / "report.json")


@pytest.mark.parametrize("content", [b"", b'{"format": 1', b"[]", b"\xff\xfe", b"[" * 100_000])
def test_what_is_not_a_report_is_a_run_error(tmp_path, content):
    (tmp_path / "report.json").write_bytes(content)
    with pytest.raises(RunError, match=r"damaged|cannot be read"):
        read_json(tmp_path / "report.json")


def test_a_missing_report_is_a_run_error(tmp_path):
    with pytest.raises(RunError, match="no report here"):
        read_json(tmp_path / "report.json")


def test_the_committed_schema_is_the_generated_one():
    assert SCHEMA_FILE.read_text() == schema_text(), "run `python -m trainscope.report.json_schema`"


def test_reports_validate(reports):
    schema = json_schema()
    for report in (reports.s0_report(), reports.clean_report(), reports.unobservable_report()):
        assert problems(to_json(report), schema, schema) == []


def test_the_schema_catches_what_is_wrong(s0):
    schema = json_schema()
    del s0["diagnoses"][0]["remedies"][0]["proven"]
    s0["findings"][0]["value"] = "much"
    s0["format"] = 2
    assert len(problems(s0, schema, schema)) == 3
