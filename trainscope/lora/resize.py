"""Brings the pairs of a LoRA to another rank, keeping what they do to the weights as nearly as the rank allows.

The new pair is the truncated singular value decomposition of scale · B·A, split evenly between the halves, which keeps
both in the range of fp16. Where a rank grows, the new columns of B are zero, so that the effect stays, and the new rows
of A are small and random, so that they can be trained: with both at zero their gradients would be zero for ever.
Knows nothing of files: `header` says what the numbers are called there, `write` writes them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import mode

import numpy as np

from trainscope.errors import ModelError
from trainscope.lora.file import LoraFile, LoraFilePair
from trainscope.lora.lowrank import (
    Matrix,
    as_down_matrix,
    as_up_matrix,
    distance,
    live,
    rank_for,
    singular,
    singular_values,
)
from trainscope.lora.tensors import WRITABLE, decode, encode


@dataclass(frozen=True)
class Target:
    """What to resize to: a rank, or the share of Σσ² that each module has to keep.

    `alpha` None keeps each module's alpha / rank. `dtype` is "fp32", "bf16" or "fp16"; None keeps each pair's, but
    makes fp32 of fp64.
    """

    rank: int | None = None
    energy: float | None = None
    alpha: float | None = None
    dtype: str | None = None


@dataclass(frozen=True, eq=False)
class ResizedPair:
    """A pair as it will be written.

    `up` and `down` are the bytes in the format's `dtype`, of the shapes beside them. `energy` is ‖scale · B·A‖²_F
    before, `kept` the part of it in the new pair's singular values; `lost` is ‖ΔW − ΔW'‖_F / ‖ΔW‖_F of what is written,
    rounding included (0 where ΔW is zero).
    """

    pair: LoraFilePair
    rank: int
    alpha: float
    dtype: str
    down: bytes = field(repr=False)
    up: bytes = field(repr=False)
    down_shape: tuple[int, ...]
    up_shape: tuple[int, ...]
    energy: float
    kept: float
    lost: float


def resize(file: LoraFile, target: Target) -> list[ResizedPair]:
    """Resize every pair of a file. Raises `ModelError` for a rank beyond use or values beyond the dtype's range."""
    if target.rank is not None:
        largest = max(max(pair.rank, _sides(pair)[0]) for pair in file.pairs)
        if target.rank > largest:
            raise ModelError(
                f"--rank {target.rank}: no module of {file.path} has use for more than {largest}",
                hint="a rank larger than both sides of a weight adds nothing",
            )
    ranks = [_rank(pair, target) for pair in file.pairs]
    alphas = _alphas(file, ranks, target)
    resized = []
    beyond = []
    for pair, rank, alpha in zip(file.pairs, ranks, alphas, strict=True):
        done = _resized(pair, rank, alpha, WRITABLE[target.dtype or {"fp64": "fp32"}.get(pair.dtype, pair.dtype)])
        resized.append(done)
        if not math.isfinite(done.lost):
            beyond.append(f"  {pair.key} as {done.dtype.lower()}")
    if beyond:
        more = [f"  and {len(beyond) - 10} more"] if len(beyond) > 10 else []
        raise ModelError(
            "\n".join(["values are beyond the range of the dtype:", *beyond[:10], *more]), hint="--dtype fp32 or bf16"
        )
    return resized


def _sides(pair: LoraFilePair) -> tuple[int, int]:
    """The sides of the module's weight as a matrix, the smaller first."""
    sides = sorted((pair.up.shape[0], math.prod(pair.down.shape[1:])))
    return sides[0], sides[1]


def _rank(pair: LoraFilePair, target: Target) -> int:
    if target.rank is not None:
        return target.rank
    values = singular_values(as_up_matrix(pair.up), as_down_matrix(pair.down))
    # A pair of rank 0 cannot be written; one of rank 1 keeps a module without effect trainable.
    return max(1, rank_for(values, target.energy or 0.0, _sides(pair)[1]))


def _alphas(file: LoraFile, ranks: Sequence[int], target: Target) -> list[float]:
    """The alpha of each pair. What it does to the scale, the factors make good."""
    if target.alpha is not None:
        return [_stored(file, target.alpha)] * len(ranks)
    alphas = [_stored(file, pair.scale * rank) for pair, rank in zip(file.pairs, ranks, strict=True)]
    if file.layout != "kohya":
        return alphas
    # One for each component: diffusers gives kohya's attention projections the most frequent alpha, whatever is stored.
    for component in {pair.component for pair in file.pairs}:
        own = [number for number, pair in enumerate(file.pairs) if pair.component == component]
        if len({alphas[number] for number in own}) > 1:
            usual = mode(file.pairs[number].scale for number in own) * mode(ranks[number] for number in own)
            for number in own:
                alphas[number] = _stored(file, usual)
    return alphas


def _stored(file: LoraFile, alpha: float) -> float:
    """Alpha as the file will keep it: in tensors of float32, or as decimals, which lose nothing."""
    in_tensors = file.layout == "kohya" or any(pair.alpha_origin == "stored" for pair in file.pairs)
    return float(np.float32(alpha)) if in_tensors else alpha


def _resized(pair: LoraFilePair, rank: int, alpha: float, dtype: str) -> ResizedPair:
    up, down = as_up_matrix(pair.up), as_down_matrix(pair.down)
    found = singular(up, down)
    kept = min(rank, live(found.values, _sides(pair)[1]))
    scale = alpha / rank
    share = np.sqrt(found.values[:kept] * abs(pair.scale / scale))
    new_up = np.zeros((up.shape[0], rank))
    new_up[:, :kept] = found.u[:, :kept] * share * math.copysign(1.0, pair.scale / scale)
    new_down = np.vstack([share[:, None] * found.v[:kept], _fresh_rows(pair.key, rank - kept, down.shape[1])])
    up_bytes, down_bytes = encode(new_up, dtype), encode(new_down, dtype)
    norm, lost = float(np.linalg.norm(found.values)), 0.0
    written = [
        decode(content, dtype).reshape(half.shape).astype(np.float64)
        for content, half in ((up_bytes, new_up), (down_bytes, new_down))
    ]
    if not all(np.isfinite(half).all() for half in written):
        lost = math.inf
    elif norm:
        lost = distance(up, down, written[0] * (scale / pair.scale), written[1]) / norm
    return ResizedPair(
        pair=pair, rank=rank, alpha=alpha, dtype=dtype, down=down_bytes, up=up_bytes,
        down_shape=(rank, *pair.down.shape[1:]), up_shape=(pair.up.shape[0], rank, *pair.up.shape[2:]),
        energy=(pair.scale * norm) ** 2, kept=float((pair.scale * np.linalg.norm(found.values[:kept])) ** 2), lost=lost,
    )  # fmt: skip


def _fresh_rows(key: str, count: int, width: int) -> Matrix:
    """Rows of A as peft initialises them (uniform within 1 / √in), drawn by the pair's name."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    bound = 1.0 / math.sqrt(width)
    return np.random.default_rng(seed).uniform(-bound, bound, (count, width))
