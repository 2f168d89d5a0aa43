"""Run directories that are damaged, none, or of another version; options and queries that cannot be."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.integration.commands import config_text, digest, refused, trainscope

# ---- run directories


def change_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


def _part(run: Path, table: str = "steps") -> Path:
    return min((run / "log" / table).glob("*.parquet"))


def _cut(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def _zero(path: Path, start: int, end: int) -> None:
    content = bytearray(path.read_bytes())
    content[start:end] = bytes(len(content[start:end]))
    path.write_bytes(content)


def _rewrite(path: Path, **columns: Any) -> None:
    pq.write_table(pa.table(columns), path)


def _as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _as_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/nowhere")


def _as_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("x", encoding="utf-8")


RESOLVED = "segments/0/config.resolved.json"

DAMAGED: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "no run.json": (lambda run: (run / "run.json").unlink(), ("not a run directory", "run.json")),
    "half a run.json": (lambda run: _cut(run / "run.json", 0.5), ("run.json cannot be read",)),
    "an empty run.json": (lambda run: (run / "run.json").write_text(""), ("run.json cannot be read",)),
    "a binary run.json": (lambda run: (run / "run.json").write_bytes(b"\xff\xfe\x00"), ("run.json cannot be read",)),
    "run.json is a list": (lambda run: (run / "run.json").write_text("[]"), ("run.json", "no format number")),
    "run.json is a folder": (lambda run: _as_folder(run / "run.json"), ("run.json cannot be read",)),
    "a newer format": (lambda run: change_json(run / "run.json", format=99), ("run.json", "format 99", "upgrade")),
    "format as text": (lambda run: change_json(run / "run.json", format="1"), ("no format number",)),
    "format as truth": (lambda run: change_json(run / "run.json", format=True), ("no format number",)),
    "an unknown status": (lambda run: change_json(run / "run.json", status="fine"), ("run.json is damaged", "fine")),
    "segments of nothing": (lambda run: change_json(run / "run.json", segments=[{}]), ("run.json is damaged",)),
    "segments of numbers": (lambda run: change_json(run / "run.json", segments=[3]), ("run.json is damaged",)),
    "no segments in run.json": (lambda run: change_json(run / "run.json", segments=None), ("run.json is damaged",)),
    "a segment elsewhere": (
        lambda run: change_json(run / "run.json", segments=[{"number": "../../x", "start_step": 0}]),
        ("run.json is damaged",),
    ),
    "a truncated part": (lambda run: _cut(_part(run), 0.5), ("log/steps/s0-r0-000000.parquet is damaged",)),
    "a part's last byte": (lambda run: _cut(_part(run, "params"), 0.9999), ("log/params/", "is damaged")),
    "an empty part": (lambda run: _cut(_part(run, "tensors"), 0), ("log/tensors/", "is damaged")),
    "a zeroed part": (lambda run: _zero(_part(run, "config"), 0, 10**9), ("log/config/", "is damaged")),
    "a part with a hole": (lambda run: _zero(_part(run), 100, 200), ("log/steps/", "is damaged")),
    "a part of another type": (lambda run: _rewrite(_part(run), step=["1"]), ("log/steps/", "step is string")),
    "a part that is a folder": (lambda run: _as_folder(_part(run)), ("log/steps/", "is damaged")),
    "a part that leads nowhere": (lambda run: _as_link(_part(run)), ("log/steps/", "is damaged")),
    "a table that is a file": (lambda run: _as_file(run / "log/groups"), ("log/groups is damaged",)),
}

DAMAGED_FOR_AUDITS: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "no segment yet": (lambda run: change_json(run / "run.json", segments=[]), ("no segment", "before the training")),
    "segments missing": (lambda run: shutil.rmtree(run / "segments"), (f"{RESOLVED} cannot be read",)),
    "a segment's folder missing": (lambda run: shutil.rmtree(run / "segments/0"), (f"{RESOLVED} cannot be read",)),
    "resolved missing": (lambda run: (run / RESOLVED).unlink(), (f"{RESOLVED} cannot be read",)),
    "resolved empty": (lambda run: (run / RESOLVED).write_text(""), (f"{RESOLVED} is damaged",)),
    "half of resolved": (lambda run: _cut(run / RESOLVED, 0.5), (f"{RESOLVED} is damaged",)),
    "resolved is a list": (lambda run: (run / RESOLVED).write_text("[]"), (f"{RESOLVED} is damaged",)),
    "resolved without keys": (lambda run: (run / RESOLVED).write_text("{}"), (f"{RESOLVED} is damaged",)),
    "resolved with odd keys": (lambda run: (run / RESOLVED).write_text('{"keys": [{}]}'), (f"{RESOLVED} is damaged",)),
    "resolved with an odd path": (
        lambda run: change_json(run / RESOLVED, path=3),
        (f"{RESOLVED} is damaged",),
    ),
    "config.toml missing": (lambda run: (run / "segments/0/config.toml").unlink(), ("config.toml cannot be read",)),
    "config.toml in Latin-1": (
        lambda run: (run / "segments/0/config.toml").write_bytes(b"\xe9"),
        ("config.toml cannot be read",),
    ),
}


def commands(run: Path) -> list[tuple[object, ...]]:
    return [
        ("audit", run),
        ("audit", run, "--format", "json", "--output", "-"),
        ("fix", run, "--output", run.parent / "fixed.toml"),
        ("sql", run, "SELECT count(*) FROM steps"),
    ]


@pytest.mark.parametrize(("damage", "says"), DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_run(damage: Callable[[Path], object], says: tuple[str, ...], own_run: Path) -> None:
    damage(own_run)
    for command in commands(own_run):
        message = refused(str(command[0]), *command[1:], says=says, folder=own_run.parent)
        assert str(own_run) in message


@pytest.mark.parametrize(("damage", "says"), DAMAGED_FOR_AUDITS.values(), ids=DAMAGED_FOR_AUDITS.keys())
def test_a_run_whose_segment_is_damaged(damage: Callable[[Path], object], says: tuple[str, ...], own_run: Path) -> None:
    damage(own_run)
    for command in commands(own_run)[:3]:
        refused(str(command[0]), *command[1:], says=says, folder=own_run.parent)


@pytest.mark.parametrize("what", ["nothing", "a folder", "a file"])
def test_what_is_no_run(what: str, here: Path) -> None:
    run = here / "thing"
    if what == "a folder":
        run.mkdir()
    elif what == "a file":
        run.write_text("x", encoding="utf-8")
    says = (str(run), "no such run" if what == "nothing" else "not a run directory")
    for command in commands(run):
        refused(str(command[0]), *command[1:], says=says, folder=here)


def test_leftovers_of_a_crash_are_ignored(own_run: Path) -> None:
    whole = trainscope("sql", own_run, "SELECT count(*), sum(step) FROM steps").out
    folder = _part(own_run).parent
    (folder / ".s0-r0-000099.parquet.1234.tmp").write_bytes(b"half")
    (folder / "s0-r0-000098.parquet.tmp").write_bytes(b"half")
    (own_run / ".run.json.1234.tmp").write_bytes(b"half")
    (own_run / "checkpoints" / ".step-00000010.1234.tmp").mkdir(parents=True)
    assert trainscope("sql", own_run, "SELECT count(*), sum(step) FROM steps").out == whole
    assert trainscope("audit", own_run, "--fail-on", "never").code == 0


def test_a_log_that_is_not_there_is_not_observable(own_run: Path) -> None:
    """Silence means something: without a log no rule says "clear"."""
    shutil.rmtree(own_run / "log")
    result = trainscope("audit", own_run)
    assert result.code == 0
    assert "Nothing was looked at" in result.out
    assert trainscope("audit", own_run, "--strict").code == 1
    report = json.loads((own_run / "report.json").read_text(encoding="utf-8"))
    assert {rule["outcome"] for rule in report["rules"]} <= {"not_observable", "not_applicable"}


def test_a_flipped_bit_is_found(own_run: Path) -> None:
    """A bit flipped anywhere in a Parquet file never makes another number."""
    part, rng = _part(own_run), random.Random(0)
    whole, query = part.read_bytes(), "SELECT * FROM steps ORDER BY step"
    numbers = trainscope("sql", own_run, query).out
    for _ in range(120):
        broken = bytearray(whole)
        broken[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        part.write_bytes(broken)
        result = trainscope("sql", own_run, query)
        assert result.code in (0, 2), result.err
        assert result.code == 0 or str(part) in result.message
        assert result.code == 2 or result.out == numbers


# ---- options


BAD_OPTIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "an unknown format": (("--format", "xml"), ("--format xml: allowed are html, json",)),
    "one unknown format": (("--format", "json,xml"), ("--format json,xml: allowed are html",)),
    "no format": (("--format", ""), ("--format",)),
    "an unknown level": (("--fail-on", "fatal"), ("--fail-on fatal: allowed are error, warning, info, never",)),
    "an unknown code": (("--select", "ZZZ"), ("--select ZZZ: no rule begins so",)),
    "a code in small letters": (("--select", "prec001"), ("--select prec001: no rule begins so",)),
    "two unknown codes": (("--select", "ZZZ", "--ignore", "YYY"), ("--select ZZZ", "--ignore YYY")),
    "a folder below a file": (("--output", "file/below"), ("--output file/below",)),
    "a folder that is a file": (("--output", "file"), ("--output file",)),
    "a file below a file": (("--output", "file/r.json"), ("file/r.json",)),
    "a file that is a folder": (("--output", "folder.json"), ("folder.json",)),
    "a file in no folder": (("--output", "nope/r.json"), ("nope/r.json",)),
    "another format's file": (
        ("--output", "r.html", "--format", "json"),
        ("r.html is one file, and not for --format json",),
    ),
    "two formats on stdout": (("--output", "-", "--format", "json,html"), ("--output - takes exactly one",)),
    "rules that are not there": (("--rules", "nope"), ("nope", "no such folder of rules")),
    "rules in a file": (("--rules", "file"), ("file", "no such folder of rules")),
    "a folder without rules": (("--rules", "folder.json"), ("folder.json", "no rules in it")),
    "an unknown option": (("--nonsense",), ("No such option: --nonsense", "trainscope audit --help")),
}


@pytest.mark.parametrize(("options", "says"), BAD_OPTIONS.values(), ids=BAD_OPTIONS.keys())
def test_a_bad_option_of_audit(options: tuple[str, ...], says: tuple[str, ...], own_run: Path, here: Path) -> None:
    (here / "file").write_text("precious", encoding="utf-8")
    (here / "folder.json").mkdir()
    refused("audit", own_run, *options, says=says, folder=own_run.parent)


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (("audit",), ("RUN", "trainscope audit --help")),
        (("nope",), ("No such command 'nope'", "trainscope --help")),
        (("run", "a.toml", "b.toml"), ("b.toml",)),
        (
            ("preflight", "cfg.toml", "--format", "xml"),
            ("--format xml: allowed are console, github, json, junit, sarif",),
        ),
        (("config", "show", "trian.steps"), ("unknown key: trian.steps", "did you mean train.steps?")),
        (("config", "show", "zzz"), ("unknown key: zzz", "trainscope config show")),
        (("rules", "list", "--format", "xml"), ("--format xml: allowed are console, json",)),
        (("rules", "show", "PREC0001"), ("no rule PREC0001", "did you mean PREC001?")),
        (("rules", "validate", "nope"), ("nope", "no such folder of rules")),
        (("rules", "test", "nope"), ("nope", "no such folder of rules")),
        (("prove", "NOPE"), ("no rule has the code NOPE",)),
        (("rules", "new", "bad", "a-name", "--family", "ema"), ("code bad", "EMA007")),
        (("rules", "new", "EMA777", "Bad Name", "--family", "ema"), ("name Bad Name",)),
        (("rules", "new", "EMA777", "../../x", "--family", "ema"), ("name ../../x",)),
        (("rules", "new", "EMA777", "a-name", "--family", "../../x"), ("--family ../../x",)),
        (("rules", "new", "EMA777", "a-name", "--family", "ema", "--root", "file"), ("file", "--root")),
        (("rules", "new", "EMA777", "a-name"), ("--family", "trainscope rules new --help")),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_bad_arguments(command: tuple[str, ...], says: tuple[str, ...], here: Path) -> None:
    (here / "cfg.toml").write_text(config_text(), encoding="utf-8")
    (here / "file").write_text("x", encoding="utf-8")
    refused(command[0], *command[1:], says=says, folder=here)


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("", "0 statements"),
        ("SELECT", "does not parse"),
        ("SELECT * FROM nope", "no table nope"),
        ("SELECT * FROM step", "did you mean steps?"),
        ("SELECT nope FROM steps", '"nope" not found'),
        ("SELECT 1; SELECT 2", "2 statements"),
        ("COPY steps TO 'stolen.parquet'", "COPY"),
        ("WITH x AS (COPY steps TO 'stolen') SELECT 1", "COPY"),
        ("DROP TABLE steps", "DROP"),
        ("ATTACH 'x.db'", "ATTACH"),
        ("SELECT * FROM read_text('/etc/passwd')", "read_text"),
        ("SELECT * FROM '/etc/passwd'", "/etc/passwd"),
        ("SELECT CAST('x' AS INTEGER) FROM steps", "Conversion Error"),
    ],
)
def test_sql_reads_the_run_and_nothing_else(query: str, says: str, own_run: Path, here: Path) -> None:
    refused("sql", own_run, query, says=(says,), folder=own_run.parent)


def test_fix_overwrites_nothing(faulty_run: Path, here: Path) -> None:
    assert trainscope("fix", faulty_run).code == 0
    assert (here / "cfg.fixed.toml").exists()
    refused("fix", faulty_run, says=("cfg.fixed.toml exists", "--output"), folder=here)
    refused("fix", faulty_run, "--output", "nope/f.toml", says=("nope/f.toml",), folder=here)
    refused("fix", faulty_run, "--output", ".", says=("exists",), folder=here)


def test_an_audit_replaces_the_reports_only(own_run: Path) -> None:
    reports = ("report.json", "report.html")
    before = digest(own_run, ignore=reports)
    trainscope("audit", own_run)
    trainscope("audit", own_run)
    assert digest(own_run, ignore=reports) == before
    assert all((own_run / name).stat().st_size > 100 for name in reports)


def test_standard_output_holds_the_report_and_nothing_else(short_run: Path) -> None:
    result = trainscope("audit", short_run, "--format", "json", "--output", "-", "--fail-on", "never")
    assert (result.code, result.err) == (0, "")
    assert json.loads(result.out)["verdict"]
