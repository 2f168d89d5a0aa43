"""Reading 8-bit state without bitsandbytes, against bitsandbytes and against the float64 reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bitsandbytes.functional import create_dynamic_map, dequantize_blockwise, quantize_blockwise
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.probes import reference
from tests.unit.probes.steps import OPTIMIZERS, set_grads
from trainscope.probes.quantised import block_size, dequantise

BLOCKS = (64, 256, 2048)


@settings(max_examples=60, deadline=None)
@given(
    numel=st.integers(1, 6000),
    block=st.sampled_from(BLOCKS),
    signed=st.booleans(),
    stride=st.integers(1, 7),
    seed=st.integers(0, 1000),
)
def test_the_bits_are_those_of_bitsandbytes(numel: int, block: int, signed: bool, stride: int, seed: int) -> None:
    values = torch.randn(numel, generator=torch.Generator().manual_seed(seed))
    values = values if signed else values.square()
    codes, state = quantize_blockwise(values, code=create_dynamic_map(signed=signed), blocksize=block)
    found = dequantise(codes, state.code, state.absmax)
    expected = dequantize_blockwise(codes, absmax=state.absmax, code=state.code, blocksize=block)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    assert torch.equal(dequantise(codes, state.code, state.absmax, stride=stride), expected[::stride])
    np.testing.assert_allclose(
        reference.wide(found), reference.dequantised(codes, state.code, state.absmax, block), rtol=1e-6
    )


@given(numel=st.integers(1, 10**8), block=st.sampled_from(BLOCKS))
def test_the_block_size_follows_from_the_number_of_blocks(numel: int, block: int) -> None:
    blocks = -(-numel // block)
    found = block_size(numel, blocks)
    assert found == block or (blocks == 1 and found >= numel)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_state_of_any_memory_layout_is_read_in_logical_order(memory_format: torch.memory_format) -> None:
    weight = torch.randn(8, 16, 5, 5, generator=torch.Generator().manual_seed(0)).to(memory_format=memory_format)
    params = {"w": torch.nn.Parameter(weight)}
    optimizer = OPTIMIZERS["adamw8bit"](params.values())
    set_grads(params, 1)
    grad = params["w"].grad
    assert grad is not None
    optimizer.step()
    state = optimizer.state[params["w"]]
    assert state["state1"].dtype == torch.uint8
    m = dequantise(state["state1"], state["qmap1"], state["absmax1"])
    # After the first step m = (1 − β₁)·g; a code is off by 1/128 of its block's largest value at most.
    assert (m - 0.1 * grad.flatten()).abs().max() <= 0.1 * grad.abs().max() / 64
