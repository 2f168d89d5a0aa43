"""The magnitudes of the `params` table against a float64 reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trainscope.probes.params import MEDIAN_ELEMENTS, ParamsProbe


def rows(**tensors: torch.Tensor) -> dict[str, dict[str, float | None]]:
    model = torch.nn.Module()
    for name, tensor in tensors.items():
        model.register_parameter(name, torch.nn.Parameter(tensor))
    requested = {f"unet.{name}": param for name, param in model.named_parameters()}
    columns = ParamsProbe(requested).measure({"unet": model}, torch.optim.SGD(model.parameters())).columns
    names = ("weight_rms", "weight_abs_median")
    return {param: {name: columns[name][place] for name in names} for place, param in enumerate(columns["param"])}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_magnitudes(dtype: torch.dtype) -> None:
    tensor = torch.randn(31, 33, generator=torch.Generator().manual_seed(0)).to(dtype)
    found, wide = rows(weight=tensor)["unet.weight"], np.abs(tensor.double().numpy())
    assert found["weight_rms"] == pytest.approx(np.sqrt(np.mean(wide**2)), rel=1e-6)
    assert found["weight_abs_median"] == pytest.approx(np.median(wide), rel=1e-12)


def test_the_median_of_a_large_tensor_is_that_of_a_sample_all_over_it() -> None:
    tensor = torch.linspace(0, 1, 3 * MEDIAN_ELEMENTS + 7)
    found = rows(weight=tensor)["unet.weight"]
    assert found["weight_abs_median"] == pytest.approx(0.5, abs=1e-4)
    assert found["weight_rms"] == pytest.approx(1 / np.sqrt(3), rel=1e-5)


def test_an_empty_tensor_has_no_magnitude() -> None:
    assert rows(weight=torch.empty(0, 3))["unet.weight"] == {"weight_rms": None, "weight_abs_median": None}
