"""The compiled passes: pieces and blocks, what float32 cannot add, what must not be read, and no numba at all."""

from __future__ import annotations

import builtins
import math
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.unit.probes import reference
from trainscope import probes
from trainscope.probes import kernels
from trainscope.probes.by_kernel import PIECE_ELEMENTS, ByKernel, compiled_passes, is_plain
from trainscope.probes.by_rows import ByRows

SIZES = [1, 5, 1024, 1025, 3 * 1024 + 7, PIECE_ELEMENTS, 2 * PIECE_ELEMENTS + 1500]


def made(scale: float, seed: int) -> list[Tensor]:
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=random) * scale for size in SIZES]


def both(tensors: list[Tensor], grads: list[Tensor | None], change: list[Tensor]) -> list[Tensor]:
    """What each way measures of a step, [10, tensors]; the weights are as before at the end."""
    kernels = compiled_passes()
    assert kernels is not None
    found: list[Tensor] = []
    for look in (ByKernel(tensors, kernels), ByRows(tensors, [1] * len(tensors))):
        kept = [tensor.clone() for tensor in tensors]
        before = look.gradients(grads)
        for tensor, delta in zip(tensors, change, strict=True):
            tensor.add_(delta)
        found.append(torch.cat([before, look.changes()]))
        for tensor, old in zip(tensors, kept, strict=True):
            tensor.copy_(old)
    return found


@pytest.mark.parametrize("scale", [0.0, 1e-44, 1e-30, 1e-18, 1e-3, 1.0, 1e15, 1e30])
def test_the_same_as_by_rows_at_any_scale(scale: float) -> None:
    grads: list[Tensor | None] = [*made(scale, 1)]
    grads[2] = None
    for grad in grads[3:]:
        assert grad is not None
        grad[::3] = 0
    mine, other = both(made(scale, 0), grads, made(scale * 1e-3, 2))
    torch.testing.assert_close(mine, other, rtol=2e-6, atol=0)


def test_against_the_definition() -> None:
    tensors, grads = made(1.0, 0), made(0.1, 1)
    grads[4][17:2000] = 0
    grads[5][3], grads[6][PIECE_ELEMENTS + 1] = math.nan, -math.inf
    change = made(1e-3, 2)
    for delta in change:
        delta[::2] = 0
    before = [tensor.clone() for tensor in tensors]
    mine, _ = both(tensors, list(grads), change)
    names = ["grad_norm", "nonfinite", "nonzero_count", "grad_zero_count", "grad_absmax", "weight_norm"]
    names += ["weight_nonfinite", "update_norm", "distance_from_start", "lost_count"]
    for number, old in enumerate(before):
        exact = reference.update_row(old, old + change[number], old, grads[number])
        step = (old + change[number] - old).double().numpy()  # the difference of float32 values
        exact["update_norm"] = exact["distance_from_start"] = float(np.linalg.norm(step))
        for name, value in zip(names, mine[:, number].tolist(), strict=True):
            assert value == pytest.approx(exact[name], rel=2e-6, nan_ok=True), name


def test_a_gradient_in_another_order_of_memory_is_read_in_the_weights_order() -> None:
    tensors = [torch.randn(40, 30)]
    grad = torch.randn(30, 40).t()
    grad[0] = 0
    tensors[0][5:] += 1.0
    mine, other = both(tensors, [grad], [torch.where(grad == 0, 0.0, 1e-3) * (torch.arange(30) > 3)])
    torch.testing.assert_close(mine, other, rtol=2e-6, atol=0)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(3, dtype=torch.bfloat16),
        torch.zeros(3, dtype=torch.float64),
        torch.zeros(3, device="meta"),
        torch.zeros(3, 4).t(),
        torch.zeros(0),
        torch.zeros(3, 3).to_sparse(),
    ],
    ids=["bfloat16", "float64", "elsewhere", "transposed", "empty", "sparse"],
)
def test_other_memory_is_not_read_by_its_address(tensor: Tensor) -> None:
    assert not is_plain(tensor)
    assert is_plain(torch.zeros(3))


def test_a_tensor_that_has_become_smaller_is_not_read_beyond_its_end() -> None:
    kernels = compiled_passes()
    assert kernels is not None
    weight = torch.nn.Parameter(torch.zeros(5000))
    look = ByKernel([weight], kernels)
    look.gradients([torch.ones(5000)])
    weight.data = torch.zeros(10)
    with pytest.raises(RuntimeError, match="another size"):
        look.changes()
    weight.data = torch.zeros(5000, dtype=torch.bfloat16)
    with pytest.raises(RuntimeError, match="no longer"):
        look.changes()


def test_where_numba_cannot_be_imported_there_are_no_compiled_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("numba"):
            raise ImportError("Numba needs another NumPy")
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "trainscope.probes.kernels", raising=False)
    monkeypatch.delattr(probes, "kernels", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    assert compiled_passes.__wrapped__() is None


def test_where_nothing_can_be_compiled_there_are_none_either(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compiled_passes.__wrapped__() is not None

    def fail() -> None:
        raise RuntimeError("no code for this processor")

    monkeypatch.setattr(kernels, "make_ready", fail)
    assert compiled_passes.__wrapped__() is None
