"""With less memory than copies of all weights take, a fixed sample stands for them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests.unit.probes.steps import make_params, probed_step, rows_of, set_grads
from trainscope.probes.by_kernel import ByKernel
from trainscope.probes.sampling import SAMPLE_ELEMENTS
from trainscope.probes.tensors import COUNTS, UPDATE, TensorsProbe, strides_within

SIZE = 300 * 512


def probed(memory_bytes: int) -> tuple[TensorsProbe, dict[str, object]]:
    generator = torch.Generator().manual_seed(0)
    param = torch.nn.Parameter(torch.randn(300, 512, generator=generator).bfloat16())
    optimizer = torch.optim.AdamW([param], lr=1e-3, weight_decay=0.0)
    probe = TensorsProbe({"w": param}, optimizer, memory_bytes=memory_bytes)
    rows = []
    for step in range(1, 4):
        param.grad = torch.randn(300, 512, generator=generator).bfloat16()
        param.grad[0] = 0
        rows += probed_step(probe, optimizer, step)
    return probe, rows[-1]


def test_copies_keep_to_their_memory() -> None:
    tensors = [torch.empty(shape) for shape in ((320, 320, 3, 3), (1280, 320), (320,), (40,), (64, 16, 3, 3))]
    whole = sum(tensor.numel() * 9 for tensor in tensors)
    assert strides_within(tensors, whole) == [1] * len(tensors)
    strides = strides_within(tensors, whole // 4)
    kept = [-(-tensor.numel() // stride) for tensor, stride in zip(tensors, strides, strict=True)]
    assert sum(kept) * 9 <= whole // 4 + 9 * SAMPLE_ELEMENTS * len(tensors)
    assert all(n >= min(tensor.numel(), SAMPLE_ELEMENTS // 2) for n, tensor in zip(kept, tensors, strict=True))
    assert all(math.gcd(stride, tensor.numel()) == 1 for stride, tensor in zip(strides, tensors, strict=True))


def test_a_sample_estimates_what_needs_copies_and_nothing_else() -> None:
    (whole, exact), (sampled, estimated) = probed(2**30), probed(SIZE)
    assert whole.share_of_elements == 1
    assert 0.1 < sampled.share_of_elements < 0.25
    for column, value in exact.items():
        if column == "lost_count":
            assert estimated[column] == pytest.approx(value, rel=0.05)
        elif column in UPDATE:
            assert estimated[column] == pytest.approx(value, rel=0.02)
        else:
            assert estimated[column] == value, column
    assert {column for column, why in sampled.reasons.items() if "sample" in why} == set(UPDATE)
    assert not any("sample" in why for why in whole.reasons.values())


def test_what_stands_still_is_lost_whole() -> None:
    """Rounded up or down, an estimate never says that more was lost than there was."""
    param = torch.nn.Parameter(torch.ones(1000, 7).bfloat16())
    optimizer = torch.optim.AdamW([param], lr=1e-9, weight_decay=0.0)
    probe = TensorsProbe({"w": param}, optimizer, memory_bytes=1000)
    param.grad = torch.ones_like(param)
    (row,) = probed_step(probe, optimizer, 1)
    assert row["lost_count"] == row["nonzero_count"] == 7000
    assert row["update_norm"] == row["distance_from_start"] == 0
    assert "lost_count" in COUNTS


def held(look: Any) -> list[Any]:
    """The copies from before the step."""
    if isinstance(look, ByKernel):
        return [look._before, look._nonzero]
    return [*look._before, *look._nonzero]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["compiled", "by rows"])
def test_copies_made_before_a_step_are_gone_after_it(dtype: torch.dtype) -> None:
    params = make_params(dtype)
    optimizer = torch.optim.AdamW(params.values(), lr=1e-3)
    probe = TensorsProbe(params, optimizer)
    set_grads(params, 1)
    probe.before_step()
    (_, look), *_ = probe._looks
    assert sum(copy.nbytes for copy in held(look)) >= sum(p.numel() * (p.element_size() + 1) for p in params.values())
    optimizer.step()
    rows_of(probe.after_step(1))
    assert sum(copy.nbytes for copy in held(look)) == 0
