from __future__ import annotations

import pyarrow as pa
import pytest

from trainscope.engine.sandbox import run_query
from trainscope.engine.tables import TableSource, config_values, decode_value, encode_value, from_rows
from trainscope.errors import RuleError
from trainscope.runlog.tables import TABLES


def steps_left(source: TableSource, table: str = "steps") -> list[tuple[int, int]]:
    sql = f"SELECT segment, step FROM {table} ORDER BY ALL"
    return [(row[0], row[1]) for row in run_query(source, sql)[1]]


def rows(*pairs: tuple[int, int | None]) -> list[dict[str, int | None]]:
    return [{"segment": segment, "step": step} for segment, step in pairs]


def test_every_table_and_column_is_there() -> None:
    old = pa.table({"step": [1], "extra": ["x"]})
    source = TableSource({"steps": old})
    assert set(source.tables) == set(TABLES)
    assert set(source.tables["steps"].schema.names) == {*TABLES["steps"].schema.names, "extra"}
    assert run_query(source, "SELECT extra, loss FROM steps")[1] == [("x", None)]
    assert TableSource().tables["steps"].num_rows == 0


def test_a_dataset_is_completed_too(tmp_path: object) -> None:
    dataset = pytest.importorskip("pyarrow.dataset").dataset(pa.table({"step": [1, 2], "extra": ["x", "y"]}))
    source = TableSource(
        {
            "steps": dataset,
            "config": pytest.importorskip("pyarrow.dataset").dataset(
                pa.table({"segment": [0], "key": ["a"], "value": ["1"], "origin": ["file"]})
            ),
        }
    )
    assert run_query(source, "SELECT extra, loss FROM steps WHERE step > 1")[1] == [("y", None)]
    assert config_values(source) == {"a": 1}


def test_a_resume_supersedes_the_steps_behind_it() -> None:
    source = from_rows({"steps": rows((0, 1), (0, 40), (0, 41), (0, 60), (1, 41), (1, 50))}, segment_starts=[0, 40])
    assert steps_left(source) == [(0, 1), (0, 40), (1, 41), (1, 50)]
    assert len(steps_left(source, "steps_all")) == 6


def test_a_later_resume_from_further_back_supersedes_both() -> None:
    history = rows((0, 10), (0, 20), (0, 30), (1, 31), (1, 40), (2, 21))
    source = from_rows({"steps": history}, segment_starts=[0, 30, 20])
    assert steps_left(source) == [(0, 10), (0, 20), (2, 21)]


def test_a_resume_from_the_beginning_leaves_step_zero() -> None:
    source = from_rows({"steps": rows((0, 0), (0, 5), (1, 1))}, segment_starts=[0, 0])
    assert steps_left(source) == [(0, 0), (1, 1)]


def test_rows_outside_of_any_step_survive() -> None:
    source = from_rows({"events": rows((0, None), (0, 50), (1, 41))}, segment_starts=[0, 40])
    assert run_query(source, "SELECT count(*) FROM events")[1] == [(2,)]


def test_without_steps_the_last_segment_counts() -> None:
    source = from_rows(
        {"env": [{"segment": 0, "key": "torch", "value": "1"}, {"segment": 1, "key": "torch", "value": "2"}]},
        segment_starts=[0, 40],
    )
    assert run_query(source, "SELECT value FROM env")[1] == [("2",)]
    assert run_query(source, "SELECT count(*) FROM env_all")[1] == [(2,)]
    assert run_query(from_rows({"data": [{"sample": 1}]}), "SELECT sample FROM data")[1] == [(1,)]


def test_resumed() -> None:
    assert not TableSource().resumed
    assert TableSource(segment_starts=[0, 40]).resumed
    assert TableSource(segment_starts=[40]).resumed, "a new run that continues another one"


def test_config_values_are_those_of_the_last_segment() -> None:
    source = from_rows(
        {
            "config": [
                {"segment": 0, "key": "a", "value": "1"},
                {"segment": 1, "key": "a", "value": "2.5"},
                {"segment": 1, "key": "b", "value": "text"},
            ]
        }
    )
    assert config_values(source) == {"a": 2.5, "b": "text"}
    assert config_values(TableSource()) == {}


@pytest.mark.parametrize("value", [1, 2.5, True, None, [0.9, 0.999], "adamw", "a: b", "", {"a": 1}])
def test_config_values_survive_the_table(value: object) -> None:
    assert decode_value(encode_value(value)) == value


def test_a_quoted_text_stays_as_it_is_written() -> None:
    assert decode_value('"x"') == '"x"'
    assert decode_value(None) is None


def test_rows_default_to_the_first_segment_and_process_but_not_to_a_lora_rank() -> None:
    source = from_rows({"steps": [{"step": 1}], "adapters": [{"step": 1, "module": "m"}]})
    assert source.tables["steps"].to_pylist()[0]["rank"] == 0
    assert source.tables["adapters"].to_pylist()[0]["rank"] is None
    assert source.tables["adapters"].to_pylist()[0]["segment"] == 0


def test_every_wrong_cell_is_listed() -> None:
    with pytest.raises(RuleError) as error:
        from_rows({"steps": [{"step": "x", "los": 1}], "step": []})
    assert len(str(error.value).splitlines()) == 3


def test_rows_become_what_they_say() -> None:
    rows = [
        {"step": 1, "loss": 1, "skipped": True, "rss_bytes": 2**40},
        {},
        {"step": 3, "loss": float("nan"), "skipped": False},
    ]
    table = from_rows({"steps": rows, "events": [{"kind": "é…"}, {}, {"kind": ""}]}).tables
    assert table["steps"].column("step").to_pylist() == [1, None, 3]
    assert table["steps"].column("skipped").to_pylist() == [True, None, False]
    assert table["steps"].column("rss_bytes").to_pylist() == [2**40, None, None]
    assert repr(table["steps"].column("loss").to_pylist()) == "[1.0, None, nan]"
    assert table["events"].column("kind").to_pylist() == ["é…", None, ""]
    for built in table.values():
        built.validate(full=True)
    many = from_rows({"params": [{"param": f"p{number}", "requires_grad": number % 3 == 0} for number in range(100)]})
    flags = many.tables["params"].column("requires_grad").to_pylist()
    assert flags == [number % 3 == 0 for number in range(100)]


@pytest.mark.parametrize("value", [2**70, "x", 1.0, [1]])
def test_a_number_that_is_no_whole_number_of_64_bits(value: object) -> None:
    with pytest.raises(RuleError, match=r"steps\.step: expected a whole number"):
        from_rows({"steps": [{"step": value}]})
