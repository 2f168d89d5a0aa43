"""The average: which decay an update uses, in which format it is kept, and weights that come back as they were."""

from __future__ import annotations

import pytest
import torch

from trainscope.config.model import EmaSection
from trainscope.config.plan import ema_decay
from trainscope.trainer.ema import averaged_weights, build_ema


def params(dtype: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(3, 4, generator=generator).to(dtype)) for _ in range(2)]


def test_off_is_none() -> None:
    assert build_ema(EmaSection(), params()) is None


@pytest.mark.parametrize("warmup", [True, False])
@pytest.mark.parametrize("decay", [0.5, 0.99, 0.9999])
def test_the_decay_is_the_one_that_preflight_counts_with(warmup: bool, decay: float) -> None:
    tensors = params()
    ema = build_ema(EmaSection(enabled=True, decay=decay, warmup=warmup), tensors)
    assert ema is not None
    for update in range(1, 60):
        ema.step(tensors)
        assert ema.cur_decay_value == pytest.approx(ema_decay(update, decay=decay, warmup=warmup)), update


@pytest.mark.parametrize(
    ("dtype", "trained", "kept"),
    [
        ("fp32", torch.bfloat16, torch.float32),
        ("bf16", torch.float32, torch.bfloat16),
        ("weights", torch.bfloat16, torch.bfloat16),
        ("weights", torch.float32, torch.float32),
    ],
)
def test_the_format(dtype: str, trained: torch.dtype, kept: torch.dtype) -> None:
    tensors = params(trained)
    ema = build_ema(EmaSection(enabled=True, dtype=dtype), tensors)  # type: ignore[arg-type]
    assert ema is not None
    assert {shadow.dtype for shadow in ema.shadow_params} == {kept}
    ema.step(tensors)
    assert {shadow.dtype for shadow in ema.shadow_params} == {kept}
    assert {tensor.dtype for tensor in tensors} == {trained}


def test_an_update_is_the_formula() -> None:
    tensors = params()
    ema = build_ema(EmaSection(enabled=True, decay=0.9, warmup=False), tensors)
    assert ema is not None
    expected = [tensor.detach().double() for tensor in tensors]
    for update in range(1, 8):
        with torch.no_grad():
            for tensor in tensors:
                tensor.mul_(1.5).add_(0.1)
        ema.step(tensors)
        decay = ema_decay(update, decay=0.9, warmup=False)
        expected = [
            decay * old + (1 - decay) * new.detach().double() for old, new in zip(expected, tensors, strict=True)
        ]
        for shadow, reference in zip(ema.shadow_params, expected, strict=True):
            torch.testing.assert_close(shadow.double(), reference, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_come_back_bit_for_bit(dtype: torch.dtype) -> None:
    tensors = params(dtype)
    ema = build_ema(EmaSection(enabled=True), tensors)
    assert ema is not None
    with torch.no_grad():
        for tensor in tensors:
            tensor.add_(0.3)
            tensor[0, 0] = float("nan")
    before = [tensor.detach().clone().view(torch.uint8) for tensor in tensors]
    for error in (None, ZeroDivisionError):
        try:
            with averaged_weights(ema, tensors):
                for tensor, shadow in zip(tensors, ema.shadow_params, strict=True):
                    assert torch.equal(tensor.detach(), shadow.to(dtype))
                if error:
                    raise error
        except ZeroDivisionError:
            pass
        assert all(torch.equal(a, b.detach().view(torch.uint8)) for a, b in zip(before, tensors, strict=True))


def test_looking_at_the_average_leaves_the_average() -> None:
    tensors = params()
    ema = build_ema(EmaSection(enabled=True, dtype="bf16"), tensors)
    assert ema is not None
    before = [shadow.clone() for shadow in ema.shadow_params]
    with averaged_weights(ema, tensors):
        pass
    assert all(torch.equal(a, b) for a, b in zip(before, ema.shadow_params, strict=True))
