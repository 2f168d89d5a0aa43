"""The noises and timesteps of `[noise]`: what each adds, and that a sample's depend on nothing but its own key."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from trainscope.config.noise import NoiseSection
from trainscope.trainer.noise import Draw, Draws, generator, multires, noise_like

SHAPE = (4, 16, 16)
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "offset": {"offset": 0.1},
    "multires": {"multires_iterations": 6},
    "perturbed": {"input_perturbation": 0.1},
    "logit-normal": {"timestep_sampling": "logit-normal"},
    "all": {
        "offset": 0.1,
        "multires_iterations": 6,
        "input_perturbation": 0.1,
        "timestep_sampling": "logit-normal",
        "min_timestep": 100,
        "max_timestep": 900,
    },
}


def draws(**section: Any) -> Draws:
    return Draws(NoiseSection(**section), seed=3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_samples_draw_is_its_own(kind: str) -> None:
    """Whoever stands beside it in the batch, on whichever rank, and whatever was drawn before."""
    source = draws(**KINDS[kind])
    whole = source.at(5, [3, 1, 7], SHAPE)
    torch.manual_seed(1)
    torch.randn(10)
    state = torch.get_rng_state()
    parts = [source.at(5, [7], SHAPE), source.at(5, [1, 3], SHAPE)]
    assert torch.equal(torch.get_rng_state(), state)
    for name in ("noise", "added", "timesteps"):
        value = getattr(whole, name)
        assert torch.equal(getattr(parts[0], name), value[2:])
        assert torch.equal(getattr(parts[1], name), value[[1, 0]])
        assert not torch.equal(getattr(source.at(6, [3, 1, 7], SHAPE), name), value)
        assert not torch.equal(getattr(Draws(source.section, seed=4).at(5, [3, 1, 7], SHAPE), name), value)
    assert whole.noise.shape == (3, *SHAPE)
    assert whole.noise.dtype == whole.added.dtype == torch.float32


def test_plain_noise_is_what_it_was() -> None:
    """A change of these numbers changes what every seed means."""
    draw = draws().at(5, [3], SHAPE)
    assert torch.equal(draw.noise, noise_like(SHAPE, seed=3, step=5, samples=[3]))
    assert draw.added is draw.noise


def test_offset_is_a_constant_for_each_channel() -> None:
    plain, offset = draws().at(0, range(500), SHAPE), draws(offset=0.3).at(0, range(500), SHAPE)
    added = (offset.noise - plain.noise).double()
    assert torch.allclose(added, added[:, :, :1, :1].expand_as(added), atol=1e-6)
    constants = added[:, :, 0, 0]
    assert float(constants.mean()) == pytest.approx(0, abs=0.02)
    assert float(constants.std()) == pytest.approx(0.3, rel=0.05)
    # Different in all channels and samples.
    assert len(constants.flatten().float().unique()) > 1990
    assert float(offset.noise.double().mean(dim=(2, 3)).var()) == pytest.approx(1 / 256 + 0.09, rel=0.1)


def test_multires_is_the_sum_of_enlarged_noises() -> None:
    """Its twin takes one pixel at a time, in float64."""
    iterations, discount = 4, 0.4
    plain = noise_like((2, 9, 12), seed=3, step=1, samples=[5])[0]
    stream = generator(3, "multires", 1, 5)
    total = plain.double().numpy().copy()
    for i in range(iterations):
        r = 2 + 2 * float(torch.rand((), generator=stream))
        size = max(1, int(9 / r**i)), max(1, int(12 / r**i))
        coarse = torch.randn(1, 2, *size, generator=stream)[0].double().numpy()
        for y in range(9):
            for x in range(12):
                total[:, y, x] += discount**i * bilinear(coarse, (y + 0.5) / 9, (x + 0.5) / 12)
        if 1 in size:
            break
    expected = total / total.std(ddof=1)
    found = multires(plain, iterations, discount, generator=generator(3, "multires", 1, 5))
    np.testing.assert_allclose(found.double().numpy(), expected, atol=1e-5)
    section = {"multires_iterations": iterations, "multires_discount": discount}
    assert torch.equal(draws(**section).at(1, [5], (2, 9, 12)).noise[0], found)


def bilinear(picture: np.ndarray, down: float, right: float) -> np.ndarray:
    """The value at a place, both in 0–1, of pixels whose values are those of their centres."""
    _, height, width = picture.shape
    y = min(max(down * height - 0.5, 0), height - 1)
    x = min(max(right * width - 0.5, 0), width - 1)
    y0, x0 = int(y), int(x)
    y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
    upper = picture[:, y0, x0] * (1 - (x - x0)) + picture[:, y0, x1] * (x - x0)
    lower = picture[:, y1, x0] * (1 - (x - x0)) + picture[:, y1, x1] * (x - x0)
    return np.asarray(upper * (1 - (y - y0)) + lower * (y - y0))


def test_multires_has_more_at_the_low_frequencies_and_unit_variance() -> None:
    plain = draws().at(0, range(200), SHAPE).noise.double()
    multi = draws(multires_iterations=6, multires_discount=0.5).at(0, range(200), SHAPE).noise.double()
    assert torch.allclose(multi.flatten(1).std(dim=1), torch.ones(200, dtype=torch.float64), atol=1e-5)
    # The mean of a channel is its lowest frequency.
    assert float(multi.mean(dim=(2, 3)).var() / plain.mean(dim=(2, 3)).var()) > 3


def test_many_iterations_end_at_one_pixel() -> None:
    few, many = (draws(multires_iterations=n).at(0, [1], SHAPE).noise for n in (20, 200))
    assert torch.equal(few, many)


def test_perturbation_is_in_the_input_alone() -> None:
    plain, perturbed = draws().at(0, range(50), SHAPE), draws(input_perturbation=0.2).at(0, range(50), SHAPE)
    assert torch.equal(perturbed.noise, plain.noise)
    more = (perturbed.added - perturbed.noise).double() / 0.2
    assert float(more.mean()) == pytest.approx(0, abs=0.02)
    assert float(more.std()) == pytest.approx(1, rel=0.02)
    assert abs(float((more * plain.noise).mean())) < 0.02


def test_timesteps_keep_to_their_range() -> None:
    for sampling in ("uniform", "logit-normal"):
        section = {"timestep_sampling": sampling, "min_timestep": 200, "max_timestep": 203, "logit_std": 3.0}
        found = draws(**section).at(0, range(300), (1, 1, 1)).timesteps
        assert found.dtype == torch.int64
        assert set(found.tolist()) == {200, 201, 202}


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.8, 0.5)])
def test_logit_normal_timesteps(mean: float, std: float) -> None:
    """Their logits are normal: compared with the distribution function, at its tenths."""
    section = {"timestep_sampling": "logit-normal", "logit_mean": mean, "logit_std": std}
    found = draws(**section).at(0, range(4000), (1, 1, 1)).timesteps.double()
    for tenth in range(1, 10):
        x = math.log(tenth / (10 - tenth))
        share = 0.5 * (1 + math.erf((x - mean) / (std * math.sqrt(2))))
        assert float((found < 100 * tenth).double().mean()) == pytest.approx(share, abs=0.025)


def test_an_extreme_logit_stays_below_the_end() -> None:
    source = draws(timestep_sampling="logit-normal", logit_mean=60.0)
    assert set(source.at(0, range(5), (1, 1, 1)).timesteps.tolist()) == {999}


def test_moving_keeps_one_noise_one() -> None:
    """On the CPU nothing is moved; a perturbed draw has two tensors, any other one."""
    draw = draws().at(0, [1], SHAPE)
    assert draw.to(torch.device("cpu")) is draw
    there = draw.to(torch.device("meta"))
    assert there.added is there.noise
    perturbed = draws(input_perturbation=0.1).at(0, [1], SHAPE).to(torch.device("meta"))
    assert isinstance(perturbed, Draw)
    assert perturbed.added is not perturbed.noise
