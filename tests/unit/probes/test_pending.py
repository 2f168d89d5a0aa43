"""What is brought to the host: arrays, with a mask where a sentinel stood for NULL."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from trainscope.probes.pending import ABSENT, MANY, Pending, absent, collect


def pending(values: list[list[float]], **options: object) -> Pending:
    return Pending("tensors", 3, {"param": ["a", "b", "c"]}, ("x", "y"), torch.tensor(values).double(), **options)  # type: ignore[arg-type]


def test_measures_are_arrays_and_keys_as_they_were() -> None:
    (record,) = collect([pending([[1.5, math.nan, 3.0], [4.0, 5.0, 6.0]]), pending([[7.0] * 3, [8.0] * 3])])
    assert record.table == "tensors"
    assert record.columns["param"] == ["a", "b", "c"] * 2
    assert record.columns["step"].tolist() == [3] * 6
    assert repr(record.columns["x"].tolist()) == "[1.5, nan, 3.0, 7.0, 7.0, 7.0]"
    assert record.columns["y"].tolist() == [4.0, 5.0, 6.0, 8.0, 8.0, 8.0]
    assert collect([]) == []


def test_many_rows_stay_as_they_are() -> None:
    """A record for each step, whose measures are not copied."""
    values = torch.zeros((1, MANY), dtype=torch.float64)
    names = ["a"] * MANY
    records = collect([Pending("tensors", step, {"param": names}, ("x",), values) for step in (1, 2)])
    assert [record.columns["step"][0] for record in records] == [1, 2]
    assert all(record.columns["param"] is names for record in records)
    assert all(np.shares_memory(record.columns["x"], values.numpy()) for record in records)


def test_null_is_a_mask() -> None:
    item = pending(
        [[1.0, ABSENT, 3.0], [ABSENT, 5.0, 0.0]],
        integers=frozenset({"x"}),
        null_where={**absent("x"), "y": (("x", ABSENT), ("y", 0.0))},
    )
    (record,) = collect([item])
    assert record.columns["x"].dtype == np.int64
    assert record.columns["x"].tolist() == [1, None, 3]
    # -1 is a value where the other column says so.
    assert record.columns["y"].tolist() == [-1.0, None, None]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_count_is_finite(value: float) -> None:
    with pytest.raises(ValueError, match="x counts"):
        collect([pending([[1.0, value, 3.0], [4.0, 5.0, 6.0]], integers=frozenset({"x"}))])


def test_rows_may_be_none_or_need_a_gradient() -> None:
    values = torch.zeros((2, 0), dtype=torch.float64, requires_grad=True)
    (record,) = collect([Pending("tensors", 1, {"param": []}, ("x", "y"), values)])
    assert {name: len(column) for name, column in record.columns.items()} == {"step": 0, "param": 0, "x": 0, "y": 0}
