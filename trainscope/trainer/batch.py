"""The samples of a micro-batch → what one forward pass is given.

Knows nothing of noise or loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from trainscope.trainer.models.text import TextEmbedding, encode_text

if TYPE_CHECKING:
    from trainscope.trainer.session import Session


@dataclass(frozen=True)
class Batch:
    """What one forward pass is given, and what identifies it.

    `latents` [b, 4, h, w] and `text` [b, tokens, dim]; `condition` [b, 5, h, w] is the mask and the masked image's
    latents of an inpainting model, else None; `added` is what SDXL is told besides, else None: `text_embeds` [b, dim]
    and `time_ids` [b, 6] (height and width of the picture, its crop's top and left, height and width of the target).
    """

    samples: list[int]
    latents: Tensor
    text: Tensor
    condition: Tensor | None
    added: dict[str, Tensor] | None


def load_batch(session: Session, samples: Sequence[int], position: int) -> Batch:
    """Latents and text of some samples, cached or made now; what is drawn depends on (seed, position, sample)."""
    data, components = session.data, session.components
    condition = None
    if components.inpainting:
        condition = data.inpainting_condition(components, samples, seed=session.seed, step=position)
        condition = condition.to(session.device)
    text = _text(session, samples)
    added = None
    if text.pooled is not None:
        added = {"text_embeds": text.pooled, "time_ids": data.size_conditions(samples).to(session.device)}
    return Batch(
        samples=list(samples),
        latents=data.latents[list(samples)].to(session.device),
        text=text.hidden,
        condition=condition,
        added=added,
    )


def _text(session: Session, samples: Sequence[int]) -> TextEmbedding:
    """Cached, unless the text encoder is trained: then it is run, with its gradient."""
    data = session.data
    if "text_encoder" in session.config.train.parts:
        captions = [data.samples[sample].caption for sample in samples]
        with session.autocast():
            return encode_text(session.components, captions, clip_skip=session.config.model.clip_skip)
    cached = data.captions
    pooled = None if cached.pooled is None else cached.pooled[list(samples)].to(session.device)
    return TextEmbedding(cached.embeddings[list(samples)].to(session.device), pooled)
