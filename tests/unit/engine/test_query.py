from __future__ import annotations

import pytest

from trainscope.engine.query import check_select
from trainscope.errors import RuleError


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM groups",
        "-- a comment\nSELECT step FROM groups; -- another",
        "FROM groups",
        "WITH a AS (SELECT * FROM groups), b AS MATERIALIZED (SELECT * FROM a) SELECT * FROM b JOIN a USING (step)",
        "WITH groups AS (SELECT * FROM groups_all) SELECT * FROM groups",
        "WITH RECURSIVE t(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM t WHERE i < 5) SELECT * FROM t",
        "SELECT * FROM groups UNION ALL BY NAME SELECT * FROM groups_all",
        "PIVOT groups ON step IN (1, 2) USING sum(d)",
        "SELECT * FROM (PIVOT groups ON step IN (1, 2) USING sum(d))",
        "UNPIVOT groups ON d, d0",
        "SELECT * FROM groups ASOF JOIN steps USING (step)",
        "SELECT * FROM range(3), unnest([1, 2]) AS u(x), generate_series(1, 3)",
        "SELECT e.key FROM events, json_each(events.detail) AS e",
        "SELECT *, row_number() OVER w FROM steps WINDOW w AS (ORDER BY step) QUALIFY row_number() OVER w < 3",
        "SELECT list_transform([1], lambda x: x + 1), (SELECT max(step) FROM steps), EXISTS (FROM evals)",
        "SELECT COLUMNS('d.*') FROM groups",
        "SELECT * FROM (VALUES (1, 'a')) AS v(x, y)",
        "SELECT * FROM GROUPS g, Tensors_ALL t",
        "SELECT i FROM (SELECT max(step) AS last FROM steps) AS s, range(s.last) AS r(i)",
        "SELECT " + "+".join(["1"] * 100),
        "SUMMARIZE groups",
        "DESCRIBE groups",
    ],
)
def test_a_single_select_is_accepted(sql: str) -> None:
    check_select(sql)


@pytest.mark.parametrize(
    ("sql", "reason"),
    [
        ("SELECT 1; SELECT 2", "found 2 statements"),
        ("", "found 0 statements"),
        ("SELEKT 1", "does not parse"),
        ("COPY groups TO '/tmp/x.csv'", "found COPY"),
        ("INSERT INTO groups VALUES (1)", "found INSERT"),
        ("CREATE TABLE x AS SELECT 1", "found CREATE"),
        ("CREATE MACRO f() AS 1", "found CREATE"),
        ("SET threads = 8", "found"),
        ("PRAGMA version", "found"),
        ("ATTACH 'x.db'", "found ATTACH"),
        ("INSTALL httpfs", "found"),
        ("LOAD httpfs", "found LOAD"),
        ("CALL pragma_version()", "found CALL"),
        ("EXPLAIN SELECT 1", "found EXPLAIN"),
        ("EXPORT DATABASE 'x'", "found"),
        ("PREPARE p AS SELECT 1", "found PREPARE"),
        ("PIVOT groups ON step USING sum(d)", "must list its values"),
        ("SHOW TABLES", "SHOW is not allowed"),
        ("WITH x AS (COPY (SELECT 1) TO '/tmp/x.csv') SELECT 1", "COPY is not allowed"),
        ("WITH x AS (INSERT INTO groups VALUES (1) RETURNING *) SELECT * FROM x", "INSERT is not allowed"),
        ("WITH x AS (DELETE FROM groups RETURNING *) SELECT 1", "DELETE is not allowed"),
        ("WITH x AS (UPDATE groups SET d = 1 RETURNING *) SELECT 1", "UPDATE is not allowed"),
        (
            "SELECT * FROM (WITH y AS (WITH x AS (COPY (SELECT 1) TO 'x') SELECT 1) SELECT * FROM y)",
            "COPY is not allowed",
        ),
        ("SELECT * FROM '/etc/passwd'", "no table /etc/passwd"),
        ("SUMMARIZE '/etc/passwd'", "no table /etc/passwd"),
        ("SELECT * FROM grops", "did you mean groups?"),
        ("SELECT * FROM main.groups", "without a schema"),
        ("SELECT * FROM information_schema.tables", "without a schema"),
        ("SELECT * FROM duckdb_settings", "no table duckdb_settings"),
        ("SELECT * FROM read_csv('/etc/passwd')", "read_csv() is not allowed"),
        ("SELECT * FROM read_text('/etc/passwd')", "read_text() is not allowed"),
        ("SELECT * FROM glob('/*')", "glob() is not allowed"),
        ("SELECT * FROM duckdb_secrets()", "duckdb_secrets() is not allowed"),
        ("SELECT * FROM pragma_version()", "pragma_version() is not allowed"),
        ("SELECT * FROM query('SELECT 1')", "query() is not allowed"),
        ("SELECT * FROM query_table('groups')", "query_table() is not allowed"),
        ("SELECT * FROM arrow_scan(1, 2, 3)", "arrow_scan() is not allowed"),
        ("SELECT * FROM json_execute_serialized_sql('{}')", "json_execute_serialized_sql() is not allowed"),
        ("SELECT getenv('HOME')", "getenv() is not allowed"),
        ("SELECT 'HOME'.getenv()", "getenv() is not allowed"),
        ("SELECT system.main.getenv('HOME')", "getenv() is not allowed"),
        ("SELECT 1 WHERE current_setting('temp_directory') LIKE '/%'", "current_setting() is not allowed"),
        ("SELECT read_text('/etc/passwd')", "read_text() is not allowed"),
        ("SELECT repeat('x', 2000000000)", "repeat() can make a value of any size"),
        ("SELECT len(range(1000000000))", "write FROM range(…)"),
        ("SELECT " + "+".join(["1"] * 900), "nested too deeply"),
        ("SELECT * FROM " + "(FROM " * 3000 + "groups" + ")" * 3000, "nested too deeply"),
        ("SELECT " + "(" * 5000 + "1" + ")" * 5000, "does not parse"),
        ("SELECT sleep_ms(1000)", "sleep_ms() is not allowed"),
        ("SELECT * FROM groups WHERE d < ?", "write $name"),
        ("SELECT * FROM groups WHERE d < $1", "write $name"),
    ],
)
def test_everything_else_is_refused_with_its_reason(sql: str, reason: str) -> None:
    with pytest.raises(RuleError) as error:
        check_select(sql)
    assert reason in str(error.value)


def test_it_names_the_parameters_and_the_tables_of_the_log() -> None:
    query = check_select("WITH g AS (FROM groups_all) SELECT * FROM g, Tensors, g AS h WHERE d < $low OR d > $high")
    assert query.parameters == {"low", "high"}
    assert query.tables == {"groups", "tensors"}


def test_it_may_be_given_other_tables() -> None:
    assert check_select("FROM mine", ["mine"]).tables == {"mine"}
    with pytest.raises(RuleError):
        check_select("FROM groups", ["mine"])
