"""Measures of tensors laid in rows against the same of each tensor by itself, in float64."""

from __future__ import annotations

import math

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.unit.probes import reference
from trainscope.probes import rows as rows_module
from trainscope.probes.rows import WIDTH, Rows, Scratch

CPU = torch.device("cpu")
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SIZES = st.lists(st.sampled_from([0, 1, 5, WIDTH - 1, WIDTH, WIDTH + 1, 300, 4 * WIDTH]), min_size=1, max_size=9)
NUMBERS = st.floats(width=32, allow_nan=True, allow_infinity=True, allow_subnormal=True)


def layout(tensors: list[Tensor]) -> Rows:
    return Rows([tensor.numel() for tensor in tensors], [(tensor.dtype, tensor.device) for tensor in tensors])


@st.composite
def many_tensors(draw: st.DrawFn) -> list[Tensor]:
    """Of several dtypes, some with NaN, infinities, zeros and denormals among their elements."""
    tensors = []
    for size in draw(SIZES):
        dtype = draw(st.sampled_from(DTYPES))
        values = draw(hnp.arrays(np.float32, min(size, 6), elements=NUMBERS))
        filled = torch.randn(size, generator=torch.Generator().manual_seed(size))
        filled[: len(values)] = torch.from_numpy(values.copy())
        tensors.append(filled.to(dtype))
    return tensors


@given(tensors=many_tensors())
def test_every_measure_is_that_of_the_tensor(tensors: list[Tensor]) -> None:
    kept = [tensor.clone() for tensor in tensors]
    rows, scratch = layout(tensors), Scratch()
    sums, tops = rows.empty(3), rows.empty(1)
    for chunk in rows.chunks:
        read = chunk.read(tensors, scratch)
        sums[0, chunk.rows], sums[1, chunk.rows] = scratch.squares(read), scratch.count_nonfinite(read)
        tops[0, chunk.rows] = scratch.largest(read)
        sums[2, chunk.rows], _ = scratch.count_nonzero(read)
    total, top = rows.put_together(sums, "sum"), rows.put_together(tops, "max")
    for index, tensor in enumerate(tensors):
        wide = reference.wide(tensor)
        assert math.sqrt(total[0, index]) == pytest.approx(reference.norm(wide), rel=1e-12, nan_ok=True)
        assert total[1, index] == (~np.isfinite(wide)).sum()
        assert total[2, index] == (wide != 0).sum()
        assert float(top[0, index]) == pytest.approx(np.abs(wide).max(initial=0), nan_ok=True)
    for tensor, before in zip(tensors, kept, strict=True):
        assert np.array_equal(reference.bits(tensor), reference.bits(before)), "a measure wrote to the tensor"


@given(tensors=many_tensors(), data=st.data())
def test_comparing_counts_bits_and_measures_differences(tensors: list[Tensor], data: st.DataObject) -> None:
    changed = [
        torch.where(torch.rand(t.shape) < 0.5, t, (t.double() * 1.5).to(t.dtype)) if t.numel() else t for t in tensors
    ]
    masks = [torch.rand(t.shape) < data.draw(st.sampled_from([0.0, 0.5, 1.0])) for t in tensors]
    rows, scratch = layout(tensors), Scratch()
    measured = rows.empty(2)
    for chunk in rows.chunks:
        now, before = chunk.read(changed, scratch), chunk.gather(tensors)
        measured[0, chunk.rows] = scratch.squares_of_difference(now, before)
        measured[1, chunk.rows] = scratch.count_same(now, before, chunk.gather(masks))
    found = rows.put_together(measured, "sum")
    for index, (old, new, mask) in enumerate(zip(tensors, changed, masks, strict=True)):
        # Differences are taken in float32, or in float64 where the weights are.
        least = torch.promote_types(old.dtype, torch.float32)
        with np.errstate(all="ignore"):
            exact = reference.norm(reference.wide(new.to(least) - old.to(least)))
        assert math.sqrt(found[0, index]) == pytest.approx(exact, rel=1e-12, nan_ok=True)
        assert found[1, index] == ((reference.bits(old) == reference.bits(new)) & mask.numpy()).sum()


@pytest.mark.parametrize("elements", [WIDTH, 4 * WIDTH])
def test_chunks_cut_tensors_and_put_them_together_again(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rows_module.CHUNK_ELEMENTS, "cpu", elements)
    monkeypatch.setattr(rows_module, "IN_PLACE_ELEMENTS", 8 * WIDTH)
    tensors = [torch.randn(size) for size in (5, 8 * WIDTH, 700, 16 * WIDTH, 1, 3 * WIDTH)]
    rows, scratch = layout(tensors), Scratch()
    measured = rows.empty(1)
    for chunk in rows.chunks:
        assert chunk.read(tensors, scratch).numel() <= elements
        measured[0, chunk.rows] = scratch.squares(chunk.read(tensors, scratch))
    found = rows.put_together(measured, "sum")[0].sqrt()
    for index, tensor in enumerate(tensors):
        assert float(found[index]) == pytest.approx(float(tensor.double().norm()))


def test_large_tensors_are_read_where_they_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "IN_PLACE_ELEMENTS", 8 * WIDTH)
    tensors = [torch.randn(8 * WIDTH), torch.randn(40)]
    large, small = layout(tensors).chunks
    assert large.read(tensors, Scratch()).data_ptr() == tensors[0].data_ptr()
    assert small.read(tensors, Scratch()).data_ptr() != tensors[1].data_ptr()
    assert large.gather(tensors).data_ptr() != tensors[0].data_ptr()


def test_padding_does_not_show_in_the_smallest() -> None:
    tensors = [torch.full((3,), 2.0), torch.full((200,), 5.0)]
    rows, scratch = layout(tensors), Scratch()
    lowest = rows.empty(1)
    for chunk in rows.chunks:
        lowest[0, chunk.rows] = chunk.read(tensors, scratch, padded_with=math.inf).amin(dim=1).double()
    assert rows.put_together(lowest, "min").tolist() == [[2.0, 5.0]]
