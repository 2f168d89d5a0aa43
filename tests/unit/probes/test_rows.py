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
from trainscope.probes.rowwise import Again, Counts, Extremes, Norms, difference, same_bits

CPU = torch.device("cpu")
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SIZES = st.lists(st.sampled_from([0, 1, 5, WIDTH - 1, WIDTH, WIDTH + 1, 300, 4 * WIDTH]), min_size=1, max_size=9)
NUMBERS = st.floats(width=32, allow_nan=True, allow_infinity=True, allow_subnormal=True)


def layout(tensors: list[Tensor]) -> Rows:
    return Rows([tensor.numel() for tensor in tensors], [(tensor.dtype, tensor.device) for tensor in tensors])


def again(rows: Rows, tensors: list[Tensor], scratch: Scratch) -> Again:
    return lambda number: rows.chunks[number].read(tensors, scratch)


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
    norms, extremes, nonzero = Norms(scratch), Extremes(), Counts()
    for chunk in rows.chunks:
        read = chunk.read(tensors, scratch)
        norms.add(read)
        extremes.add(read)
        nonzero.add(read.bool())
    squares = norms.squares(again(rows, tensors, scratch))
    sums = torch.stack([squares, norms.nonfinite(squares, again(rows, tensors, scratch)), nonzero.total()])
    total = rows.put_together(sums, "sum")
    top = rows.put_together(extremes.magnitude().unsqueeze(0), "max")
    for index, tensor in enumerate(tensors):
        wide = reference.wide(tensor)
        assert math.sqrt(total[0, index]) == pytest.approx(reference.norm(wide), rel=1e-6, nan_ok=True)
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
    norms, same = Norms(scratch), Counts()
    before = [chunk.gather(tensors) for chunk in rows.chunks]
    for number, chunk in enumerate(rows.chunks):
        now = chunk.read(changed, scratch)
        norms.add(difference(now, before[number], scratch))
        same.add(same_bits(now, before[number], chunk.gather(masks), scratch))
    once_more = again(rows, changed, scratch)
    squares = norms.squares(lambda number: difference(once_more(number), before[number], scratch))
    found = rows.put_together(torch.stack([squares, same.total()]), "sum")
    for index, (old, new, mask) in enumerate(zip(tensors, changed, masks, strict=True)):
        # Differences are taken in float32, or in float64 where the weights are.
        least = torch.promote_types(old.dtype, torch.float32)
        with np.errstate(all="ignore"):
            exact = reference.norm(reference.wide(new.to(least) - old.to(least)))
        assert math.sqrt(found[0, index]) == pytest.approx(exact, rel=1e-6, nan_ok=True)
        assert found[1, index] == ((reference.bits(old) == reference.bits(new)) & mask.numpy()).sum()


@pytest.mark.parametrize("scale", [1e-44, 1e-30, 1e-13, 1.0, 1e17, 1e30, 1e38])
def test_what_float32_cannot_square_is_measured_all_the_same(scale: float) -> None:
    tensors = [torch.linspace(-1, 1, 500) * scale, torch.zeros(500), torch.linspace(-1, 1, 500)]
    rows, scratch = layout(tensors), Scratch()
    norms = Norms(scratch)
    for chunk in rows.chunks:
        norms.add(chunk.read(tensors, scratch))
    found = rows.put_together(norms.squares(again(rows, tensors, scratch)).unsqueeze(0), "sum")[0]
    for index, tensor in enumerate(tensors):
        assert math.sqrt(found[index]) == pytest.approx(reference.norm(reference.wide(tensor)), rel=1e-6)


@pytest.mark.parametrize("elements", [WIDTH, 4 * WIDTH])
def test_chunks_cut_tensors_and_put_them_together_again(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rows_module.CHUNK_ELEMENTS, "cpu", elements)
    monkeypatch.setattr(rows_module, "IN_PLACE_ELEMENTS", 8 * WIDTH)
    tensors = [torch.randn(size) for size in (5, 8 * WIDTH, 700, 16 * WIDTH + 3, 1, 3 * WIDTH)]
    rows, scratch = layout(tensors), Scratch()
    norms = Norms(scratch)
    for chunk in rows.chunks:
        assert chunk.read(tensors, scratch).numel() <= elements
        norms.add(chunk.read(tensors, scratch))
    found = rows.put_together(norms.squares(again(rows, tensors, scratch)).unsqueeze(0), "sum")[0].sqrt()
    for index, tensor in enumerate(tensors):
        assert float(found[index]) == pytest.approx(float(tensor.double().norm()))


def test_large_tensors_are_read_where_they_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "IN_PLACE_ELEMENTS", 8 * WIDTH)
    tensors = [torch.randn(8 * WIDTH), torch.randn(40)]
    large, small = layout(tensors).chunks
    assert large.read(tensors, Scratch()).data_ptr() == tensors[0].data_ptr()
    assert small.read(tensors, Scratch()).data_ptr() != tensors[1].data_ptr()
    assert large.gather(tensors).data_ptr() != tensors[0].data_ptr()


def test_the_rest_of_a_large_tensor_lies_with_the_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "IN_PLACE_ELEMENTS", 8 * WIDTH)
    tensors = [torch.ones(3), torch.ones(8 * WIDTH + 5), torch.ones(2)]
    large, small = layout(tensors).chunks
    assert large.read(tensors, Scratch()).data_ptr() == tensors[1].data_ptr()
    assert small.read(tensors, Scratch()).sum(dim=1).tolist() == [3, 5, 2]


def test_padding_does_not_show_in_the_smallest() -> None:
    tensors = [torch.full((3,), 2.0), torch.full((200,), 5.0)]
    rows, scratch = layout(tensors), Scratch()
    extremes = Extremes()
    for chunk in rows.chunks:
        extremes.add(chunk.read(tensors, scratch, repeat=True))
    assert rows.put_together(extremes.both()[1].unsqueeze(0), "min").tolist() == [[2.0, 5.0]]
