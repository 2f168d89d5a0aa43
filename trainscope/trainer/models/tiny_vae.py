"""The tiny models' autoencoder: a real `AutoencoderKL` whose last layers are solved for, not trained.

A random autoencoder decodes to noise, and samples of noise show nobody whether a run learned. Here the features stay
random where they may, a few channels are wired to carry the picture through, and the output convolutions are the
ridge regression from those features to what they should say (Rahimi & Recht 2008, "Weighted sums of random kitchen
sinks"). That takes a second and gives blurry but faithful pictures. Knows nothing of training or of files.

How the picture survives. The latent is meant to hold the mean colour of each 8x8 cell, and a decoder has to bring it
back; but a group norm before each output convolution removes the mean and the contrast of what it normalises. So
channels come in groups of eight: three features, each with its negative, and a constant with its negative. The mean
of such a group is zero and its variance almost the constant's alone, hence the norm lets the features through as they
are; and since silu(x) - silu(-x) = x, a linear layer behind it can still read them exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812 - its customary name
from torch import Tensor, nn

CHANNELS = 16
GROUPS = CHANNELS // 8
FEATURES = [8 * group + 2 * slot for group in range(GROUPS) for slot in range(3)]
"""Channels that hold a feature; the channel after each holds its negative."""

SCALING_FACTOR = 0.18215
"""Stable Diffusion's; the latents are made so large that multiplying with it brings them near unit variance."""

LATENT_STD = torch.tensor([0.6, 1.0, 1.0, 0.4])
"""Standard deviations of the scaled latents over the synthetic pictures. The last, structure, is kept small: it can
hardly be predicted from its surroundings, and what cannot be predicted cannot be learned."""

_CONSTANT = 16.0
"""Large against the features, whose size is about 1, so that the group norm's divisor hardly varies."""
_BRANCH = 0.05
"""Scale of the residual branches: random, so they may add features but must not drown what is carried."""
_LOG_VARIANCE = -12.0
"""Of the posterior: encoding is all but deterministic, as with the real ones."""
_RIDGE = 1e-6
_PICTURES, _SIZE = 24, 64


def build_vae(generator: torch.Generator, scaling_factor: float = SCALING_FACTOR) -> Any:
    """Build the `AutoencoderKL` (float32, 8x downscale, 4 latent channels), drawing only from `generator`.

    The draws that diffusers' constructors make from the global generator are overwritten; the caller forks it.
    """
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(CHANNELS,) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=GROUPS,
        sample_size=_SIZE,
        scaling_factor=scaling_factor,
        mid_block_add_attention=False,
    ).eval()
    with torch.no_grad():
        _wire(vae, generator)
        pictures = synthetic_pictures(_PICTURES, _SIZE, generator)
        _solve_encoder(vae, pictures)
        _solve_decoder(vae, pictures)
    return vae


def synthetic_pictures(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Draw blobs on flat or shaded backgrounds: [count, 3, size, size] in [-1, 1]."""

    def uniform(*shape: int, low: float = -1.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    axis = torch.linspace(-1, 1, size)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    pictures = []
    for _ in range(count):
        first, second = uniform(3, 1, 1), uniform(3, 1, 1)
        if uniform(1) < 0:
            second = first
        slope = uniform(2)
        shade = ((slope[0] * x + slope[1] * y) / 2 + 0.5).clamp(0, 1)
        picture = first * (1 - shade) + second * shade
        for _ in range(int(torch.randint(1, 3, (1,), generator=generator))):
            colour, centre, radii = uniform(3, 1, 1), uniform(2, low=-0.7, high=0.7), uniform(2, low=0.15, high=0.65)
            power = float(uniform(1, low=1.0, high=4.0))  # from a diamond over an ellipse to almost a box
            distance = ((x - centre[0]) / radii[0]).abs() ** power + ((y - centre[1]) / radii[1]).abs() ** power
            cover = ((1 - distance ** (1 / power)) * radii.min() * size / 2 + 0.5).clamp(0, 1)
            picture = picture * (1 - cover) + colour * cover
        pictures.append(picture)
    return torch.stack(pictures)


def latent_targets(pictures: Tensor) -> Tensor:
    """What the latents should hold, before scaling: [n, 3, h, w] to [n, 4, h/8, w/8].

    Brightness, red against green, yellow against blue, and the brightness's slope along the cell's diagonal.
    """
    red, green, blue = F.avg_pool2d(pictures, 8).unbind(1)
    ramp = torch.linspace(-1, 1, 8)
    diagonal = ramp[:, None] + ramp[None, :]
    diagonal = (diagonal / diagonal.abs().sum()).expand(1, 3, 8, 8) / 3
    slope = F.conv2d(pictures, diagonal, stride=8)[:, 0]
    return torch.stack([(red + green + blue) / 3, red - green, (red + green) / 2 - blue, slope], dim=1)


def _wire(vae: Any, generator: torch.Generator) -> None:
    """Draw all weights, and carry 3 colours through the encoder and 4 latent channels through the decoder."""
    for name, module in vae.named_modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5), generator=generator)
            nn.init.zeros_(cast("Tensor", module.bias))
            if name.endswith("conv2"):
                module.weight.mul_(_BRANCH)
                _mirror(module.weight)
    for matrix in (vae.quant_conv.weight, vae.post_quant_conv.weight):
        matrix.copy_(torch.eye(len(matrix))[:, :, None, None])
    vae.post_quant_conv.weight.mul_(vae.config.scaling_factor)  # the decoder's features want inputs of size 1, too

    keep = torch.zeros(3, 3)
    keep[1, 1] = 1
    pool = torch.zeros(3, 3)
    pool[:2, :2] = 1 / 4  # the stride-2 convolutions pad only right and below: this is exact 2x2 pooling
    smooth = torch.tensor([1.0, 2.0, 1.0]) / 4
    interpolate = smooth[:, None] * smooth[None, :]  # behind nearest-neighbour doubling: bilinear interpolation

    encoder, decoder = vae.encoder, vae.decoder
    _carry(encoder.conv_in, keep, carried=3, sources=range(3))
    for block in encoder.down_blocks[:-1]:
        _carry(block.downsamplers[0].conv, pool, carried=3, sources=FEATURES)
    _carry(decoder.conv_in, keep, carried=4, sources=range(4))
    for block in decoder.up_blocks[:-1]:
        _carry(block.upsamplers[0].conv, interpolate, carried=4, sources=FEATURES)
    _open_norm(encoder.conv_norm_out, encoder.mid_block.resnets[-1], generator)
    _open_norm(decoder.conv_norm_out, decoder.up_blocks[-1].resnets[-1], generator)


def _mirror(weight: Tensor) -> None:
    """Make each feature's neighbour its negative, and leave the constants to their biases."""
    weight[1::2] = -weight[0::2]
    weight[6::8] = weight[7::8] = 0


def _carry(conv: nn.Conv2d, kernel: Tensor, *, carried: int, sources: Sequence[int]) -> None:
    """Let the first `carried` features pass through `kernel`; the others mix all of them at random, with unit norm."""
    drawn = conv.weight[FEATURES][:, list(sources)]
    drawn = drawn / drawn.flatten(1).norm(dim=1)[:, None, None, None]
    drawn[:carried] = 0
    for feature in range(carried):
        drawn[feature, feature] = kernel
    conv.weight.zero_()
    for feature, channel in enumerate(FEATURES):
        conv.weight[channel, list(sources)] = drawn[feature]
    _mirror(conv.weight)


def _open_norm(norm: nn.GroupNorm, last: Any, generator: torch.Generator) -> None:
    """Add the constants in the last block before `norm`, and shift each feature to a random point of the SiLU."""
    last.conv2.bias[6::8], last.conv2.bias[7::8] = 2 * _CONSTANT, -2 * _CONSTANT
    norm.weight.fill_(_CONSTANT)  # the norm divides by sqrt((2c)² / 4) = c
    shift = torch.linspace(-2, 2, CHANNELS // 2)[torch.randperm(CHANNELS // 2, generator=generator)]
    norm.bias[0::2], norm.bias[1::2] = shift, -shift


def _solve_encoder(vae: Any, pictures: Tensor) -> None:
    targets = latent_targets(pictures)
    std, mean = torch.std_mean(targets, dim=(0, 2, 3), keepdim=True)
    targets = (targets - mean) / std * LATENT_STD[:, None, None] / vae.config.scaling_factor
    conv = vae.encoder.conv_out
    weight, bias = _ridge(_input_of(conv, lambda: vae.encoder(pictures)), targets)
    conv.weight.zero_()
    conv.bias.fill_(_LOG_VARIANCE)
    conv.weight[:4], conv.bias[:4] = weight, bias


def _solve_decoder(vae: Any, pictures: Tensor) -> None:
    latents = vae.encode(pictures).latent_dist.mean
    conv = vae.decoder.conv_out
    weight, bias = _ridge(_input_of(conv, lambda: vae.decode(latents)), pictures)
    conv.weight.copy_(weight)
    conv.bias.copy_(bias)


def _input_of(module: nn.Module, call: Callable[[], object]) -> Tensor:
    """Run `call` and return what reached `module`."""
    seen: list[Tensor] = []
    with_hook = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        call()
    finally:
        with_hook.remove()
    return seen[0]


def _ridge(features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Solve for the 3x3 convolution from [n, c, h, w] to [n, o, h, w]: weight [o, c, 3, 3] and bias [o], float32.

    In float64: the features are so collinear that float32's normal equations would lose the solution.
    """
    channels = features.shape[1]
    patches = F.unfold(features.double(), 3, padding=1).transpose(1, 2).flatten(0, 1)
    patches = torch.cat([patches, torch.ones(len(patches), 1, dtype=torch.float64)], dim=1)
    wanted = targets.double().permute(0, 2, 3, 1).flatten(0, 2)
    gram = patches.T @ patches
    gram += _RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    solution = torch.linalg.solve(gram, patches.T @ wanted)
    return solution[:-1].T.reshape(-1, channels, 3, 3).float(), solution[-1].float()
