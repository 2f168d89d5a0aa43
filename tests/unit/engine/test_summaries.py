"""Summaries say what a scan of the whole table says, whatever is missing in it, and cost one pass."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainscope.engine import summarise
from trainscope.engine.coverage import measure
from trainscope.engine.query import check_select
from trainscope.engine.sandbox import Limits, connect, execute, run_query
from trainscope.engine.summaries import DERIVED, SUMMARIES
from trainscope.engine.summarise import summary, windows
from trainscope.engine.tables import TableSource, from_rows
from trainscope.errors import RuleError
from trainscope.runlog.tables import INT, TABLES, TEXT

LIMITS = Limits()

SCANS = {
    "norms at a step": (
        """SELECT segment, step, sqrt(sum(weight_norm::DOUBLE ^ 2)),
            sqrt(sum(distance_from_start::DOUBLE ^ 2))
        FROM tensors GROUP BY ALL""",
        "SELECT segment, step, sqrt(weight_energy), sqrt(distance_energy) FROM tensor_steps",
    ),
    "update of a step, relative to the weights": (
        """SELECT step, sqrt(sum(update_norm::DOUBLE ^ 2)) / nullif(sqrt(sum(weight_norm::DOUBLE ^ 2)), 0) FROM tensors
        WHERE isfinite(update_norm) AND isfinite(weight_norm) GROUP BY step""",
        """SELECT step, sqrt(sum(finite_update_energy)) / nullif(sqrt(sum(finite_weight_energy)), 0) FROM tensor_steps
        WHERE finite_update_energy IS NOT NULL GROUP BY step""",
    ),
    "the same with what is not finite": (
        """SELECT step, sum(update_norm::DOUBLE ^ 2), sum(weight_norm::DOUBLE ^ 2) FROM tensors
        WHERE update_norm IS NOT NULL AND weight_norm IS NOT NULL GROUP BY step""",
        """SELECT step, sum(update_energy), sum(update_weight_energy) FROM tensor_steps
        WHERE update_energy IS NOT NULL GROUP BY step""",
    ),
    "distance, relative to the weights": (
        """SELECT step, sum(distance_from_start::DOUBLE ^ 2), sum(weight_norm::DOUBLE ^ 2) FROM tensors
        WHERE distance_from_start IS NOT NULL AND weight_norm IS NOT NULL GROUP BY step""",
        """SELECT step, sum(paired_distance_energy), sum(paired_weight_energy) FROM tensor_steps
        WHERE paired_weight_energy IS NOT NULL GROUP BY step""",
    ),
    "size of a step, ranks counted once": (
        """SELECT segment, step, sqrt(sum(norm ^ 2)) FROM (
            SELECT segment, step, param, max(update_norm::DOUBLE) AS norm
            FROM tensors WHERE isfinite(update_norm) GROUP BY ALL
        ) GROUP BY ALL""",
        "SELECT segment, step, sqrt(step_energy) FROM tensor_steps WHERE step_energy IS NOT NULL",
    ),
    "delivered in the run": (
        """SELECT sum(delivered::DOUBLE * intended_norm::DOUBLE ^ 2) / nullif(sum(intended_norm::DOUBLE ^ 2), 0)
        FROM tensors WHERE isfinite(delivered) AND isfinite(intended_norm)""",
        "SELECT sum(finite_delivered_energy) / nullif(sum(finite_intended_energy), 0) FROM tensor_steps",
    ),
    "delivered by tensor": (
        """SELECT param, min(step), max(step), sum(delivered::DOUBLE * intended_norm::DOUBLE ^ 2),
            sum(intended_norm::DOUBLE ^ 2), sum(lost_count), sum(nonzero_count),
            sum(applied_norm::DOUBLE ^ 2) FILTER (WHERE isfinite(applied_norm))
        FROM tensors WHERE isfinite(delivered) AND isfinite(intended_norm) GROUP BY param""",
        """SELECT param, min(finite_first_step), max(finite_last_step), sum(finite_delivered_energy),
            sum(finite_intended_energy), sum(finite_lost_count), sum(finite_nonzero_count), sum(finite_applied_energy)
        FROM tensor_windows WHERE finite_intended_energy IS NOT NULL GROUP BY param""",
    ),
    "gradients after the first look": (
        """SELECT param, sum(nonzero_count), count(*), min(step), max(step) FROM tensors
        WHERE step > (SELECT min(step) FROM tensors) GROUP BY param""",
        """SELECT param, sum(nonzero_count), sum(looks), min(first_step), max(last_step) FROM tensor_windows
        WHERE first_step > (SELECT min(first_step) FROM tensor_windows) GROUP BY param""",
    ),
    "eps in the second half": (
        """SELECT param, sum(eps_dominated_fraction::DOUBLE), count(*), min(step), max(step) FROM tensors
        WHERE isfinite(eps_dominated_fraction) AND step > (SELECT max(step) / 2 FROM tensors) GROUP BY param""",
        """SELECT param, sum(finite_eps_dominated_sum), sum(finite_eps_looks), min(finite_eps_first_step),
            max(finite_eps_last_step)
        FROM tensor_windows WHERE first_step > (SELECT max(last_step) / 2 FROM tensor_windows)
        GROUP BY param HAVING sum(finite_eps_looks) > 0""",
    ),
    "the largest update and the first weights that are not finite": (
        """SELECT param, max(update_norm), min(step) FILTER (WHERE weight_nonfinite > 0), sum(eps_dominated_fraction)
        FROM tensors WHERE segment = 1 GROUP BY param""",
        """SELECT param, max(update_norm_max), min(nonfinite_first_step), sum(eps_dominated_sum)
        FROM tensor_windows WHERE segment = 1 GROUP BY param""",
    ),
    "the average": (
        """SELECT segment, step, dtype, sum(lag_norm::DOUBLE ^ 2), sum(distance_from_start::DOUBLE ^ 2), max(decay),
            sum(lost_count) FILTER (WHERE isfinite(delivered) AND isfinite(intended_norm))
        FROM ema GROUP BY ALL""",
        """SELECT segment, step, dtype, sum(lag_energy), sum(distance_energy), max(decay), sum(finite_lost_count)
        FROM ema_steps GROUP BY ALL""",
    ),
    "adapters": (
        """SELECT step, sum(delta_norm::DOUBLE ^ 2), sum(base_norm::DOUBLE ^ 2), min(scale), max(rank)
        FROM adapters GROUP BY step""",
        """SELECT step, sum(delta_energy), sum(base_energy), min(scale_min), max(rank_max)
        FROM adapter_steps GROUP BY step""",
    ),
    "the last look": (
        "SELECT * FROM tensors WHERE step = (SELECT max(step) FROM tensors)",
        "SELECT * FROM tensor_ends",
    ),
    "all looks, where they are few": ("SELECT * FROM tensors WHERE step IS NOT NULL", "SELECT * FROM tensor_looks"),
}
"""What rules asked before there were summaries, and how they ask now."""


def some_value(random: np.random.Generator, kind: pa.DataType, gaps: float, wild: float) -> Any:
    if random.random() < gaps:
        return None
    if kind == TEXT:
        return str(random.choice(["bfloat16", "float32"]))
    if kind == INT:
        return int(random.integers(0, 50))
    if random.random() < wild:
        return float(random.choice([np.nan, np.inf, -np.inf]))
    return float(np.float32(random.normal()))


def some_rows(random: np.random.Generator, table: str, *, gaps: float, wild: float, ranks: int) -> list[dict[str, Any]]:
    """Rows of two segments; of step 0 and of rows outside of any step there are some too."""
    rows = []
    for step in [*range(0, 40, int(random.integers(1, 4))), None]:
        for name in "abc":
            for rank in range(ranks):
                segment = int(step is not None and step > 20)
                row = {
                    column.name: some_value(random, column.type, gaps, wild)
                    for column in TABLES[table].columns
                    if random.random() > 0.01
                }
                row |= {"step": step, "segment": segment if random.random() > 0.1 else 0}
                row |= {"module": name} if table == "adapters" else {"param": name}
                row |= {"rank": rank} if table == "tensors" else {}
                rows.append(row)
    return rows


def some_source(seed: int, gaps: float, wild: float, ranks: int = 1) -> TableSource:
    random = np.random.default_rng(seed)
    tables = {
        name: some_rows(random, name, gaps=gaps, wild=wild, ranks=ranks) for name in ("tensors", "ema", "adapters")
    }
    params = [{"param": name, "in_optimizer": True, "numel": 7} for name in "abc"]
    return from_rows({**tables, "params": params}, segment_starts=[0, 20])


def on_disk(source: TableSource, folder: Path, *, without: str = "") -> TableSource:
    """The same rows in several files, each as large as a flush; `without` a column that this log does not know."""
    dataset = pytest.importorskip("pyarrow.dataset")
    tables: dict[str, Any] = {}
    for name, table in source.tables.items():
        if not len(table):
            continue
        (folder / name).mkdir(parents=True)
        kept = table.select([column for column in table.schema.names if column != without])
        for number, start in enumerate(range(0, len(table), 50)):
            pq.write_table(kept.slice(start, 50), folder / name / f"{number:03d}.parquet")
        tables[name] = dataset.dataset(sorted((folder / name).iterdir()), schema=table.schema, format="parquet")
    return TableSource(tables, source.segment_starts)


def same(found: list[tuple[Any, ...]], expected: list[tuple[Any, ...]]) -> None:
    def key(row: tuple[Any, ...]) -> str:
        return str([value if isinstance(value, str | int) else None for value in row])

    assert len(found) == len(expected)
    for one, other in zip(sorted(found, key=key), sorted(expected, key=key), strict=True):
        for value, wanted in zip(one, other, strict=True):
            if isinstance(wanted, float):
                assert value is not None
                assert math.isclose(value, wanted, rel_tol=1e-9) or repr(float(value)) == repr(wanted), (one, other)
            else:
                assert value == wanted, (one, other)


KINDS = [(0.0, 0.0, 1), (0.2, 0.0, 1), (0.0, 0.2, 1), (0.3, 0.3, 1), (1.0, 0.0, 1), (0.2, 0.2, 3)]


@pytest.mark.parametrize(("gaps", "wild", "ranks"), KINDS)
def test_a_summary_says_what_a_scan_says(gaps: float, wild: float, ranks: int, tmp_path: Path) -> None:
    memory = some_source(int(10 * gaps + 100 * wild), gaps, wild, ranks)
    for source in (memory, on_disk(memory, tmp_path)):
        with connect(source, [*source.tables, *DERIVED]) as connection:
            for scan, question in SCANS.values():
                same(execute(connection, question)[1], execute(connection, scan)[1])


def test_a_log_that_lacks_a_column_has_summaries_too(tmp_path: Path) -> None:
    source = on_disk(some_source(1, 0.1, 0.1), tmp_path, without="eps_dominated_fraction")
    rows = run_query(source, "SELECT sum(eps_looks), sum(looks), count(eps_dominated_sum) FROM tensor_windows")[1]
    assert rows == [(0, len(source.tables["tensors"].to_table()), 0)] or rows[0][0] == rows[0][2] == 0


@pytest.mark.parametrize(("gaps", "wild"), [(0.0, 0.0), (0.4, 0.2), (1.0, 0.0)])
def test_coverage_is_that_of_a_scan(gaps: float, wild: float, tmp_path: Path) -> None:
    memory = some_source(5, gaps, wild)
    for source in (memory, on_disk(memory, tmp_path)):
        seen = measure(source)
        with connect(source, ["tensors", "ema", "adapters"]) as connection:
            for table in ("tensors", "ema", "adapters"):
                names = [column.name for column in TABLES[table].columns]
                params = "0" if table == "adapters" else "count(DISTINCT param)"
                rows = [
                    f"""SELECT '{name}', count(DISTINCT step), min(step), max(step), {params}
                    FROM {table} WHERE step IS NOT NULL AND "{name}" IS NOT NULL"""
                    for name in names
                ]
                for name, *steps, tensors in execute(connection, " UNION ALL ".join(rows))[1]:
                    found = seen[f"{table}.{name}"]
                    assert [found.rows, found.first_step, found.last_step] == steps
                    is_share = table != "adapters" and name != "step"
                    assert found.share_of_params == (tensors / 3 if is_share else None)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 59, 60, 61, 500, 10_000])
def test_windows(count: int) -> None:
    random = np.random.default_rng(count)
    steps = np.sort(random.choice(np.arange(20_000), count, replace=False))
    found = windows(steps)
    assert len(found) == count
    assert sorted(set(found)) == list(range(len(set(found))))
    assert (np.diff(found) >= 0).all()
    assert len(set(found)) <= 62
    if count:
        late = set(found[2 * steps > steps[-1]])
        assert not late & set(found[2 * steps <= steps[-1]])
    if count > 1:
        assert (found == 0).sum() == 1
    if count <= 60:
        assert len(set(found)) == count


def test_a_resume_is_superseded_by_a_later_one_from_there_or_from_before() -> None:
    source = from_rows(
        {
            "events": [
                {"segment": segment, "step": step, "kind": "resume"}
                for segment, step in ((1, 40), (2, 20), (3, 20), (4, 60))
            ]
            + [{"segment": 5, "step": 1, "kind": "save"}],
            "continuity": [{"segment": 6, "step": 70}],
        }
    )
    rows = run_query(source, "SELECT * FROM resumes ORDER BY segment")[1]
    assert rows == [(1, 40, True), (2, 20, True), (3, 20, False), (4, 60, False), (6, 70, False)]


def test_the_pass_is_made_once_for_all_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    passed: list[str] = []
    whole = summarise._pass_over
    monkeypatch.setattr(summarise, "_pass_over", lambda source, table: passed.append(table) or whole(source, table))
    source = some_source(1, 0.1, 0.1)
    run_query(source, "SELECT count(*) FROM steps")
    assert passed == []
    for _ in range(3):
        run_query(source, "SELECT count(*) FROM tensor_steps, tensor_windows, ema_steps")
    measure(source)
    assert sorted(passed) == ["adapters", "ema", "tensors"]


def test_summaries_are_as_they_are_described() -> None:
    source = some_source(1, 0.1, 0.1)
    for name, table in DERIVED.items():
        assert summary(source, name).schema.equals(table.schema), name
        assert summary(TableSource(), name).schema.equals(table.schema), name
        assert len(summary(TableSource(), name)) == 0
        assert all(column.meaning for column in table.columns)
    assert not set(DERIVED) & set(TABLES)
    assert set(SUMMARIES) < set(DERIVED)


@pytest.mark.parametrize("count", [1, 99, 100, 101, 250, 1999])
def test_looks_that_are_spread(count: int) -> None:
    rows = [{"step": 3 * step, "param": name} for step in range(1, count + 1) for name in "ab"]
    source = from_rows({"tensors": rows})
    found = run_query(source, "SELECT step, count(*) FROM tensor_looks GROUP BY step ORDER BY step")[1]
    steps = [step for step, _ in found]
    assert all(tensors == 2 for _, tensors in found)
    assert steps[-1] == 3 * count
    assert min(count, 50) <= len(steps) <= 100
    assert len(set(np.diff(steps))) <= 1


def test_a_summary_has_no_raw_rows() -> None:
    with pytest.raises(RuleError, match="made of the surviving history alone"):
        check_select("SELECT * FROM tensor_steps_all")
