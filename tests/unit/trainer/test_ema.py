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


def test_in_the_computers_memory_it_is_the_same_average() -> None:
    beside, host = params(torch.bfloat16), params(torch.bfloat16)
    here = build_ema(EmaSection(enabled=True, decay=0.9), beside)
    there = build_ema(EmaSection(enabled=True, decay=0.9, device="cpu"), host)
    assert here is not None
    assert there is not None
    for _ in range(5):
        for tensors, ema in ((beside, here), (host, there)):
            with torch.no_grad():
                for tensor in tensors:
                    tensor.mul_(1.5).add_(0.1)
            ema.step(tensors)
    assert all(torch.equal(a, b) for a, b in zip(here.shadow_params, there.shadow_params, strict=True))
    assert there.optimization_step == here.optimization_step == 5
    with averaged_weights(there, host), averaged_weights(here, beside):
        assert all(torch.equal(a, b) for a, b in zip(beside, host, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(beside, host, strict=True))


def test_what_lies_in_the_computers_memory_shares_nothing_with_the_weights() -> None:
    tensors = params()
    ema = build_ema(EmaSection(enabled=True, dtype="weights", device="cpu"), tensors)
    assert ema is not None
    start = [shadow.clone() for shadow in ema.shadow_params]
    with torch.no_grad():
        for tensor in tensors:
            tensor.add_(1)
    assert all(torch.equal(a, b) for a, b in zip(start, ema.shadow_params, strict=True))
    assert not any(shadow.requires_grad for shadow in ema.shadow_params)


class Elsewhere(torch.nn.Parameter):
    """A parameter that, like one on a GPU, takes part in no arithmetic with tensors in the computer's memory."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = getattr(func, "__name__", "")
        if name.startswith("_foreach") or name in ("add", "sub", "mul", "sub_", "lerp_"):
            raise RuntimeError("Expected all tensors to be on the same device")
        result = super().__torch_function__(func, types, args, kwargs or {})
        # What `.cpu()` gives is an ordinary tensor; everything else stays where it is.
        return result.as_subclass(torch.Tensor) if name == "cpu" else result


def test_an_update_reaches_over_to_another_device() -> None:
    there = [Elsewhere(tensor.detach().clone()) for tensor in params()]
    with pytest.raises(RuntimeError, match="same device"):
        # The stand-in does what it is for.
        build_ema(EmaSection(enabled=True), there).step(there)  # type: ignore[union-attr]
    ema = build_ema(EmaSection(enabled=True, decay=0.9, warmup=False, device="cpu"), there)
    assert ema is not None
    ema.step(there)
    before = [shadow.clone() for shadow in ema.shadow_params]
    with torch.no_grad():
        for tensor in there:
            tensor.data = tensor.data.as_subclass(torch.Tensor) + 1
    ema.step(there)
    for old, shadow in zip(before, ema.shadow_params, strict=True):
        assert type(shadow) is torch.Tensor
        torch.testing.assert_close(shadow, old + 0.1)
    with averaged_weights(ema, there):
        for tensor, shadow in zip(there, ema.shadow_params, strict=True):
            assert torch.equal(tensor.detach().as_subclass(torch.Tensor), shadow)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_beside_a_gpu() -> None:
    tensors = [torch.nn.Parameter(tensor.detach().cuda()) for tensor in params()]
    ema = build_ema(EmaSection(enabled=True, decay=0.9, device="cpu"), tensors)
    same = build_ema(EmaSection(enabled=True, decay=0.9), tensors)
    assert ema is not None
    assert same is not None
    for _ in range(3):
        with torch.no_grad():
            for tensor in tensors:
                tensor.add_(0.3)
        ema.step(tensors)
        same.step(tensors)
    assert {shadow.device.type for shadow in ema.shadow_params} == {"cpu"}
    before = [tensor.detach().clone() for tensor in tensors]
    for a, b in zip(ema.shadow_params, same.shadow_params, strict=True):
        torch.testing.assert_close(a, b.cpu())
    with averaged_weights(ema, tensors):
        assert all(torch.equal(a.detach().cpu(), b) for a, b in zip(tensors, ema.shadow_params, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, tensors, strict=True))
