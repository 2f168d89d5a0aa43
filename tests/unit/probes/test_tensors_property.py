"""The `tensors` probe on whatever tensors a model may have: layouts, emptiness, ties, extreme values."""

from __future__ import annotations

import math
from collections.abc import Iterator

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.unit.probes import reference
from tests.unit.probes.steps import expect, probed_step
from trainscope.probes import moments, sample_chunk
from trainscope.probes import tensors as tensors_module
from trainscope.probes.tensors import TensorsProbe

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
EDGES = [0.0, -0.0, math.nan, math.inf, -math.inf, 1e-45, 1.2e-38, 6e-8, 3e38, 65504.0]
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6)


def laid_out(values: Tensor, layout: str) -> Tensor:
    """The same values in another order of memory."""
    if layout == "transposed" and values.dim() >= 2:
        return values.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "channels last" and values.dim() == 4:
        return values.contiguous(memory_format=torch.channels_last)
    if layout == "every other" and values.dim() >= 1:
        wide = torch.zeros(*values.shape[:-1], 2 * values.shape[-1], dtype=values.dtype)
        wide[..., ::2] = values
        return wide[..., ::2]
    return values.contiguous()


@st.composite
def models(draw: st.DrawFn) -> list[tuple[Tensor, Tensor | None]]:
    """Weights with their gradients; None: no gradient."""
    found: list[tuple[Tensor, Tensor | None]] = []
    for number in range(draw(st.integers(1, 6))):
        shape, dtype = draw(SHAPES), draw(st.sampled_from(DTYPES))
        layout = draw(st.sampled_from(["plain", "transposed", "channels last", "every other"]))
        random = torch.Generator().manual_seed(number)
        both = [torch.randn(shape, generator=random) * scale for scale in (0.05, 0.1)]
        for values in both:
            edges = draw(st.lists(st.sampled_from(EDGES), max_size=3))
            values.view(-1)[: len(edges)] = torch.tensor(edges[: values.numel()])
        weight, grad = (laid_out(values.to(dtype), layout) for values in both)
        found.append((weight, None if draw(st.integers(0, 5)) == 0 else grad))
    return found


@pytest.fixture(params=[True, False], ids=["compiled", "by rows"], scope="module")
def _how(request: pytest.FixtureRequest) -> Iterator[None]:
    """With compiled passes where they can be taken, and as if there was no numba."""
    with pytest.MonkeyPatch.context() as patch:
        if not request.param:
            for module in (tensors_module, moments, sample_chunk):
                patch.setattr(module, "compiled_passes", lambda: None)
        yield


@pytest.mark.usefixtures("_how")
@given(model=models(), memory=st.sampled_from([2**30, 64]))
def test_every_measure_without_the_optimizer(model: list[tuple[Tensor, Tensor | None]], memory: int) -> None:
    params = {f"p{n}": torch.nn.Parameter(weight) for n, (weight, _) in enumerate(model)}
    optimizer = torch.optim.SGD(params.values(), lr=0.5, foreach=False)
    start = {name: param.detach().clone() for name, param in params.items()}
    probe = TensorsProbe(params, optimizer, memory_bytes=memory)
    for param, (_, grad) in zip(params.values(), model, strict=True):
        param.grad = grad
    rows = probed_step(probe, optimizer, 1)
    for row, (_, grad) in zip(rows, model, strict=True):
        before, after = start[row["param"]], params[row["param"]].detach()
        with np.errstate(all="ignore"):
            exact = reference.update_row(before, after, before, grad)
        least = torch.promote_types(before.dtype, torch.float32)  # a difference of float32 is taken in float32
        exact["update_norm"] = exact["distance_from_start"] = reference.norm(
            reference.wide(after.to(least) - before.to(least))
        )
        for column, value in exact.items():
            expect(row[column], value)


def test_tied_weights_are_one_tensor_under_each_of_their_names() -> None:
    tied = torch.nn.Parameter(torch.randn(8, 8))
    optimizer = torch.optim.AdamW([tied], lr=1e-3)
    probe = TensorsProbe({"in.weight": tied, "out.weight": tied}, optimizer)
    tied.grad = torch.randn(8, 8)
    one, other = probed_step(probe, optimizer, 1)
    assert {**one, "param": ""} == {**other, "param": ""}


def test_frozen_weights_stand_still() -> None:
    frozen = torch.nn.Parameter(torch.randn(300), requires_grad=False)
    trained = torch.nn.Parameter(torch.randn(5))
    optimizer = torch.optim.AdamW([trained], lr=1e-3)
    probe = TensorsProbe({"frozen": frozen, "trained": trained}, optimizer)
    trained.grad = torch.randn(5)
    row, _ = probed_step(probe, optimizer, 1)
    assert row["grad_norm"] is row["delivered"] is row["state_m_norm"] is None
    assert row["update_norm"] == row["nonzero_count"] == 0
    assert row["weight_norm"] > 0
