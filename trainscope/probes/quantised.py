"""Values of tensors that are stored in eight bits, block by block (arXiv 2110.02861).

A code is an index into `qmap`, a table of 256 values between -1 and 1; a block's values are those times the largest
magnitude in the block. Pure torch, so that no optimizer's library is needed. Knows nothing of what is stored.
"""

from __future__ import annotations

import torch
from torch import Tensor


def dequantise(codes: Tensor, qmap: Tensor, absmax: Tensor, *, stride: int = 1) -> Tensor:
    """Every `stride`-th value in logical order, as float32 [⌈codes.numel() / stride⌉].

    `codes` is uint8 of any shape, `qmap` float32 [256], `absmax` float32 [blocks]. Only what is asked for is computed,
    with the one multiplication that bitsandbytes.functional.dequantize_blockwise does, so the bits are the same. It is
    on `qmap`'s device, which need not be that of paged codes.
    """
    size = block_size(codes.numel(), absmax.numel())
    # int32 halves the temporary memory; a tensor of 2³¹ elements is beyond the optimizer's kernels too.
    blocks = torch.arange(0, codes.numel(), stride, dtype=torch.int32, device=qmap.device) // size
    sampled = codes.detach().reshape(-1)[::stride].to(qmap.device).int()
    return qmap.index_select(0, sampled) * absmax.index_select(0, blocks)


def block_size(numel: int, blocks: int) -> int:
    """Elements in a block: the power of two that cuts `numel` elements into so many (any, if it is one block).

    It is not stored. bitsandbytes has 256 since 0.44 and had 2048 before.
    """
    size = 1
    while -(-numel // size) > blocks:
        size *= 2
    return size
