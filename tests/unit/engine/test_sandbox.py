"""The second fence: what a query does that got past the first. Everything here really tries."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from trainscope.engine import sandbox
from trainscope.engine.sandbox import DEFAULT_LIMITS, Limits, connect, execute, run_query
from trainscope.engine.tables import TableSource, from_rows
from trainscope.errors import RuleError

SMALL = Limits(seconds=20, memory="64MB", disk="8MB", threads=2)
in_this_frame = pa.table({"secret": [1]})


@pytest.fixture
def source() -> TableSource:
    return from_rows({"groups": [{"step": step, "d": float(step)} for step in range(1, 6)]})


@pytest.fixture
def locked(source: TableSource) -> Iterator[Any]:
    with connect(source, ["groups"], SMALL) as connection:
        yield connection


def attacks(target: Path) -> list[str]:
    return [
        f"COPY (SELECT 1) TO '{target}'",
        f"WITH x AS (COPY (SELECT 1) TO '{target}') SELECT 1",
        f"WITH x AS (COPY (SELECT 1) TO '{target}') SELECT * FROM x",
        f"EXPORT DATABASE '{target}'",
        f"ATTACH '{target}'",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM read_blob('/etc/passwd')",
        "SELECT * FROM read_json('/etc/passwd')",
        "SELECT * FROM read_parquet('/etc/passwd')",
        "SELECT * FROM sniff_csv('/etc/passwd')",
        "SELECT * FROM parquet_metadata('/etc/passwd')",
        "SELECT * FROM glob('/etc/*')",
        "SELECT * FROM query('SELECT * FROM read_text(''/etc/passwd'')')",
        "COPY groups_all FROM '/etc/passwd'",
        "IMPORT DATABASE '/etc'",
        "SELECT getenv('HOME')",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SELECT * FROM read_csv('http://localhost:1/x.csv')",
        "SET enable_external_access = true",
        "SET lock_configuration = false",
        "SET threads = 64",
        "SET memory_limit = '64GB'",
        "SET temp_directory = '/tmp'",
        "SET allowed_directories = ['/etc']",
        "RESET enable_external_access",
        "PRAGMA enable_profiling",
        "SELECT * FROM in_this_frame",
        "SELECT * FROM query('SELECT * FROM in_this_frame')",
    ]


@pytest.mark.parametrize("number", range(len(attacks(Path("x")))))
def test_a_locked_connection_refuses(locked: Any, tmp_path: Path, number: int) -> None:
    target = tmp_path / "written"
    with pytest.raises(duckdb.Error):
        locked.execute(attacks(target)[number]).fetchall()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", range(len(attacks(Path("x")))))
def test_a_rule_cannot_either(source: TableSource, tmp_path: Path, number: int) -> None:
    with pytest.raises(RuleError):
        run_query(source, attacks(tmp_path / "written")[number])
    assert list(tmp_path.iterdir()) == []


def test_the_raw_tables_cannot_be_changed(locked: Any) -> None:
    for sql in ("DELETE FROM groups_all", "INSERT INTO groups VALUES (1)", "UPDATE groups_all SET d = 0"):
        with pytest.raises(duckdb.Error):
            locked.execute(sql)


def test_a_query_that_spills_beyond_the_limit_fails(source: TableSource) -> None:
    hungry = "SELECT count(*) FROM (SELECT i, hash(i) AS h FROM range(20000000) AS t(i) ORDER BY h, i)"
    with pytest.raises(RuleError, match="Out of Memory"):
        run_query(source, hungry, limits=SMALL)


def test_what_was_spilled_is_removed(source: TableSource, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with connect(source, ["groups"], dataclasses.replace(SMALL, disk="1GB")) as connection:
        execute(
            connection,
            "SELECT max(rank) FROM (SELECT row_number() OVER (ORDER BY hash(i)) AS rank FROM range(4000000) AS t(i))",
        )
        assert [path for path in tmp_path.rglob("*") if path.is_file()], "nothing was spilled: the query is too small"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "endless",
    [
        "WITH RECURSIVE t(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM t) SELECT max(i) FROM t",
        "SELECT count(*) FROM range(10000000000) a, range(1000000) b",
        "SELECT count(*) FROM range(100000) a, range(100000) b, groups WHERE a.range % 7 = b.range % 11",
    ],
)
def test_an_endless_query_is_interrupted(source: TableSource, endless: str) -> None:
    started = time.perf_counter()
    with pytest.raises(RuleError, match=r"ran longer than 0\.2 s"):
        run_query(source, endless, limits=dataclasses.replace(SMALL, seconds=0.2))
    assert time.perf_counter() - started < 10


def test_a_deadline_that_passes_before_the_query_starts_still_ends_it(
    source: TableSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connect(source, ["groups"], SMALL) as connection, sandbox._deadline(connection, 0.01) as expired:
        time.sleep(0.2)  # the first interrupt meets no query
        with pytest.raises(duckdb.Error):
            connection.execute("SELECT count(*) FROM range(10000000000) a, range(1000000) b").fetchall()
        assert expired.is_set()


def test_too_many_rows(source: TableSource) -> None:
    with pytest.raises(RuleError, match="more than 10 rows"):
        run_query(source, "SELECT * FROM range(11)", limits=dataclasses.replace(SMALL, rows=10))
    assert len(run_query(source, "SELECT * FROM range(10)", limits=dataclasses.replace(SMALL, rows=10))[1]) == 10


def test_only_the_parameters_that_are_used_are_passed(source: TableSource) -> None:
    columns, rows = run_query(source, "SELECT step FROM groups WHERE d > $least", {"least": 3, "other": 1})
    assert (columns, rows) == (["step"], [(4,), (5,)])
    assert run_query(source, "SELECT 1 AS x", {"other": 1})[1] == [(1,)]


def test_a_parameter_without_a_threshold_is_an_error(source: TableSource) -> None:
    with pytest.raises(RuleError, match=r"no threshold for \$least"):
        run_query(source, "SELECT step FROM groups WHERE d > $least", {"other": 1})


def test_a_parameter_is_a_value_and_never_sql(source: TableSource) -> None:
    rows = run_query(source, "SELECT $x AS x FROM groups LIMIT 1", {"x": "1; COPY groups TO 'x'"})[1]
    assert rows == [("1; COPY groups TO 'x'",)]


def test_values_are_plain(source: TableSource) -> None:
    sql = "SELECT 0.5, sum(step), [1.5], {'a': 2}, DATE '2020-01-02', 'nan'::DOUBLE, NULL, true FROM groups"
    row = run_query(source, sql)[1][0]
    assert row[:5] == (0.5, 15, [1.5], {"a": 2}, "2020-01-02")
    assert isinstance(row[0], float)
    assert isinstance(row[1], int)
    assert row[5] != row[5]
    assert row[6:] == (None, True)


def test_an_error_is_one_line(source: TableSource) -> None:
    with pytest.raises(RuleError) as error:
        run_query(source, "SELECT nothing_such FROM groups")
    assert "nothing_such" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_connection_serves_the_given_tables_only(locked: Any) -> None:
    assert execute(locked, "SELECT count(*) FROM groups")[1] == [(5,)]
    with pytest.raises(RuleError):
        execute(locked, "SELECT count(*) FROM tensors")


def test_all_tables_of_the_log_are_there_even_if_empty(source: TableSource) -> None:
    with connect(source) as connection:
        for name in source.tables:
            execute(connection, f'SELECT * FROM "{name}" UNION ALL SELECT * FROM {name}_all', limits=DEFAULT_LIMITS)
