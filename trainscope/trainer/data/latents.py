"""What the frozen encoders make of pictures and captions, computed once and kept in memory.

With the encoders frozen, every epoch would compute the same latents and embeddings again; for a few thousand pictures
they fit in memory (64 kB for a 512 px picture, 231 kB for a caption of SD 1.5). Knows nothing of training or noise.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from trainscope.errors import ModelError
from trainscope.trainer.models.load import Components
from trainscope.trainer.models.quiet import quiet_libraries
from trainscope.trainer.models.text import encode_text


@dataclass(frozen=True)
class EncodedCaptions:
    """The captions as the UNet sees them, on the CPU in float32.

    `tokens` counts a caption's tokens without start and end, `truncated` those of them that did not fit.
    """

    embeddings: Tensor
    """[n, 77, dim], one for each caption, in order."""
    empty: Tensor
    """[77, dim], of the empty caption: for caption dropout and for guidance."""
    pooled: Tensor | None
    """[n, dim], SDXL's; else None."""
    tokens: list[int]
    truncated: list[int]


@torch.no_grad()
def encode_images(vae: Any, images: Iterable[Tensor], batch: int = 8) -> Tensor:
    """Encode pictures [3, h, w] in [-1, 1] to latents: float32 [n, c, h/8, w/8] on the CPU.

    The mean of the posterior times the VAE's scaling factor (Rombach et al. 2022, appendix G): no draw, so that caching
    them changes nothing. `images` may be a generator; at most `batch` pictures are in memory at once. Raises
    `ModelError` when a latent is not finite.
    """
    weight = next(vae.parameters())
    pending = iter(images)
    encoded: list[Tensor] = []
    while pictures := list(islice(pending, batch)):
        pixels = torch.stack(pictures).to(device=weight.device, dtype=weight.dtype)
        latents = vae.encode(pixels).latent_dist.mean.float() * vae.config.scaling_factor
        if not torch.isfinite(latents).all():
            raise ModelError(
                f"the VAE gave non-finite latents in {str(weight.dtype).removeprefix('torch.')}",
                hint='keep the VAE in float32: precision.base = "fp32"',
            )
        encoded.append(latents.cpu())
    return torch.cat(encoded) if encoded else torch.empty(0)


@torch.no_grad()
def encode_captions(
    components: Components, captions: Sequence[str], *, clip_skip: int = 1, batch: int = 32
) -> EncodedCaptions:
    """Encode captions, each different one once."""
    different = list(dict.fromkeys(["", *captions]))
    tokenizer = components.tokenizer
    room = tokenizer.model_max_length - 2
    with quiet_libraries():  # the tokenizer warns of long captions; `truncated` says so, too
        tokens = [len(ids) - 2 for ids in tokenizer(different, truncation=False).input_ids]
    encoded = [
        encode_text(components, different[start : start + batch], clip_skip=clip_skip)
        for start in range(0, len(different), batch)
    ]
    hidden = torch.cat([part.hidden.float().cpu() for part in encoded])
    pooled = torch.cat([part.pooled.float().cpu() for part in encoded if part.pooled is not None] or [torch.empty(0)])
    place = {caption: number for number, caption in enumerate(different)}
    order = [place[caption] for caption in captions]
    chosen = torch.tensor(order, dtype=torch.long)
    return EncodedCaptions(
        embeddings=hidden[chosen],
        empty=hidden[0],
        pooled=pooled[chosen] if pooled.numel() else None,
        tokens=[tokens[number] for number in order],
        truncated=[max(0, tokens[number] - room) for number in order],
    )
