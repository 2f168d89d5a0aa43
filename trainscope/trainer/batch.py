"""The visits of a micro-batch → what one forward pass is given.

Knows nothing of noise or loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trainscope.trainer.models.text import TextEmbedding
from trainscope.trainer.noise import moved

if TYPE_CHECKING:
    from trainscope.trainer.session import Session


@dataclass(frozen=True)
class Batch:
    """What one forward pass is given, and what identifies it.

    `samples` are visits, see `MicroBatch`. `latents` [b, 4, h, w] and `text` [b, tokens, dim]; `condition` [b, 5, h, w]
    is the mask and the masked image's latents of an inpainting model, else None; `added` is what SDXL is told besides,
    else None: `text_embeds` [b, dim] and `time_ids` [b, 6] (height and width of the picture, its crop's top and left,
    height and width of the target).
    """

    samples: list[int]
    latents: Tensor
    text: Tensor
    condition: Tensor | None
    added: dict[str, Tensor] | None


def load_batch(session: Session, samples: Sequence[int], position: int) -> Batch:
    """What the visits of a micro-batch see, cached or made now; what is drawn depends on (seed, position, visit).

    At `EVALUATION` nothing is drawn. `samples` are visits (`MicroBatch`) of one bucket.
    """
    data, components = session.data, session.components
    visits = data.visits(samples, seed=session.seed, position=position)
    condition = None
    if components.inpainting:
        condition = data.inpainting_condition(components, visits, seed=session.seed, position=position)
        condition = moved(condition, session.device)
    text = _text(session, [visit.caption for visit in visits])
    added = None
    if text.pooled is not None:
        sizes = torch.tensor([visit.frame.size_condition for visit in visits], dtype=torch.float32)
        added = {"text_embeds": moved(text.pooled, session.device), "time_ids": moved(sizes, session.device)}
    return Batch(
        samples=list(samples),
        latents=moved(data.latents.of(components.vae, visits), session.device),
        text=moved(text.hidden, session.device),
        condition=condition,
        added=added,
    )


def _text(session: Session, captions: Sequence[str]) -> TextEmbedding:
    """By frozen encoders, perhaps long ago; those that are trained are run, with their gradient."""
    embeddings = session.data.embeddings
    if "text_encoder" in session.config.train.parts:
        with session.autocast():
            return embeddings.encode(session.wrapped, captions)
    return embeddings.of(session.components, captions)
