"""Stochastic rounding: exact on average, never more than one neighbour away, from a generator of its own."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from trainscope.trainer.optimizers.rounding import StochasticRounding, round_at_random

DRAWS = 200_000


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def neighbours(value: float) -> tuple[float, float]:
    """The bf16 below and above in magnitude: the upper half of the float32's bits, and the same plus one."""
    bits = torch.tensor(value, dtype=torch.float32).view(torch.int32).item()
    low = bits & -65536
    both = torch.tensor([low, low + 65536], dtype=torch.int64).to(torch.int32).view(torch.float32)
    return both[0].item(), both[1].item()


def representable() -> Tensor:
    """Every bf16 there is."""
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)


@pytest.mark.parametrize(
    "value",
    [1.001, -1.001, 0.1, math.pi, -123.456, 1.00389, 1 + 2**-8, 1 + 2**-20, 1e-30, -3e-39, 1e-42, 3e38, 65537.0],
)
def test_the_mean_is_exact(value: float) -> None:
    exact = torch.tensor(value, dtype=torch.float32).item()
    low, high = neighbours(value)
    rounded = round_at_random(torch.full((DRAWS,), value), generator())
    assert rounded.dtype == torch.bfloat16
    assert set(rounded.double().tolist()) <= {low, high}
    chance = (exact - low) / (high - low)
    sigma = math.sqrt(chance * (1 - chance) / DRAWS) * abs(high - low)
    assert abs(rounded.double().mean().item() - exact) <= 4 * sigma


def test_the_chance_is_the_distance() -> None:
    """Of every place between two neighbours, in 1/65536."""
    low, count = 0x3F80, 4000  # 1.0
    for offset in (1, 255, 16384, 32768, 65535):
        value = torch.full((count,), (low << 16) + offset, dtype=torch.int32).view(torch.float32)
        up = (round_at_random(value, generator(offset)) > 1.0).double().mean().item()
        chance = offset / 65536
        assert abs(up - chance) <= 4 * math.sqrt(chance * (1 - chance) / count) + 1e-9


@pytest.mark.parametrize("seed", range(5))
def test_what_bf16_can_hold_is_never_changed(seed: int) -> None:
    every = representable()
    rounded = round_at_random(every.float(), generator(seed))
    finite = torch.isfinite(every)
    assert torch.equal(rounded[finite].view(torch.int16), every[finite].view(torch.int16))
    assert finite.sum() == 2 * 255 * 128


def test_nan_and_infinity_are_kept() -> None:
    payload = torch.tensor([0x7F800001, 0x7FFFFFFF, -1], dtype=torch.int32).view(torch.float32)  # NaNs of all kinds
    value = torch.cat([torch.tensor([math.inf, -math.inf, math.nan]), payload])
    for seed in range(20):
        rounded = round_at_random(value, generator(seed))
        assert rounded[:2].tolist() == [math.inf, -math.inf]
        assert torch.isnan(rounded[2:]).all()


def test_shapes_and_strides() -> None:
    value = torch.randn(6, 4, 3, generator=generator()).transpose(0, 2)
    rounded = round_at_random(value, generator())
    assert rounded.shape == value.shape
    assert (rounded.float() - value).abs().max() < 0.05
    assert round_at_random(torch.empty(0, 3), generator()).shape == (0, 3)
    assert round_at_random(torch.tensor(0.1), generator()).shape == ()


def test_the_global_generator_is_left_alone() -> None:
    param = torch.nn.Parameter(torch.randn(100).bfloat16())
    rounding = StochasticRounding([param], seed=0)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with rounding.float32_weights():
        param.data += 1e-3
    assert torch.equal(torch.get_rng_state(), before)


def test_a_seed_says_everything() -> None:
    value = torch.randn(1000, generator=generator())
    assert torch.equal(round_at_random(value, generator(1)), round_at_random(value, generator(1)))
    assert not torch.equal(round_at_random(value, generator(1)), round_at_random(value, generator(2)))


def test_one_generator_draws_anew_at_every_step() -> None:
    shared, value = generator(), torch.full((1000,), 1.002)
    assert not torch.equal(round_at_random(value, shared), round_at_random(value, shared))


def test_small_updates_arrive_on_average() -> None:
    """1000 updates of 1e-5 on 1.0: round-to-nearest stands still."""
    plain = torch.ones(2000, dtype=torch.bfloat16)
    param = torch.nn.Parameter(plain.clone())
    rounding = StochasticRounding([param], seed=0)
    for _ in range(1000):
        plain += 1e-5
        with rounding.float32_weights():
            param.data += 1e-5
    assert plain.double().mean().item() == 1.0
    assert param.data.double().mean().item() == pytest.approx(1.01, abs=1e-3)


def test_the_optimizer_steps_in_float32() -> None:
    low = torch.nn.Parameter(torch.ones(8, dtype=torch.bfloat16))
    full = torch.nn.Parameter(torch.ones(8))
    for param in (low, full):
        param.grad = torch.full_like(param, 0.5)
    storage = full.data_ptr()
    rounding = StochasticRounding([low, full], seed=0)
    with rounding.float32_weights():
        assert low.dtype == torch.float32
        assert low.grad is not None
        assert low.grad.dtype == torch.float32
        assert torch.equal(low.grad, torch.full((8,), 0.5))
    assert low.dtype == torch.bfloat16
    assert low.grad is None
    assert full.data_ptr() == storage
    assert torch.equal(full.grad, torch.full((8,), 0.5))


def test_the_state_stays_with_its_parameter() -> None:
    param = torch.nn.Parameter(torch.ones(8, dtype=torch.bfloat16))
    optimizer = torch.optim.AdamW([param], lr=1e-3)
    rounding = StochasticRounding([param], seed=0)
    for _ in range(2):
        param.grad = torch.full_like(param, 0.5)
        with rounding.float32_weights():
            optimizer.step()
    state = optimizer.state[param]
    assert state["step"] == 2
    assert state["exp_avg"].dtype == torch.float32


def test_a_step_that_raises_leaves_bf16() -> None:
    param = torch.nn.Parameter(torch.ones(8, dtype=torch.bfloat16))
    rounding = StochasticRounding([param], seed=0)
    with pytest.raises(ZeroDivisionError), rounding.float32_weights():
        raise ZeroDivisionError
    assert param.dtype == torch.bfloat16
    assert torch.equal(param.data, torch.ones(8, dtype=torch.bfloat16))


def test_a_parameter_without_a_gradient() -> None:
    param = torch.nn.Parameter(torch.ones(8, dtype=torch.bfloat16))
    with StochasticRounding([param], seed=0).float32_weights():
        assert param.grad is None
    assert param.grad is None
