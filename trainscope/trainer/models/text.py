"""Captions → what a UNet attends to, through one text encoder or SDXL's two.

Runs with or without a gradient, as the caller has it. Knows nothing of files, caches or training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainscope.trainer.models.load import Components
from trainscope.trainer.models.quiet import quiet_libraries


@dataclass(frozen=True)
class TextEmbedding:
    """`hidden` [b, tokens, dim] is attended to; `pooled` [b, dim] is SDXL's summary of the caption, else None."""

    hidden: Tensor
    pooled: Tensor | None


def encode_text(components: Components, captions: Sequence[str], *, clip_skip: int = 1) -> TextEmbedding:
    """Encode captions, padded and cut to the tokenizers' 77 tokens, as diffusers' `encode_prompt` does.

    `clip_skip` counts layers from the end, 1 being the one that the model was trained with: the last, for SDXL the last
    but one.
    """
    parts = []
    pooled = None
    for tokenizer, encoder in zip(components.tokenizers, components.text_encoders, strict=True):
        output = encoder(_tokens(tokenizer, captions).to(encoder.device), output_hidden_states=True)
        parts.append(_layer(encoder, output, clip_skip, sdxl=components.sdxl))
        if components.sdxl and "text_embeds" in output:
            pooled = output.text_embeds
    return TextEmbedding(torch.cat(parts, dim=-1), pooled)


def _layer(encoder: Any, output: Any, clip_skip: int, *, sdxl: bool) -> Tensor:
    if sdxl:
        below: Tensor = output.hidden_states[-1 - clip_skip]
        return below
    if clip_skip == 1:
        last: Tensor = output.last_hidden_state
        return last
    model = getattr(encoder, "text_model", encoder)  # transformers before and since 5
    normed: Tensor = model.final_layer_norm(output.hidden_states[-clip_skip])
    return normed


def _tokens(tokenizer: Any, captions: Sequence[str]) -> Tensor:
    with quiet_libraries():  # it warns of long captions; the `data` table says so, too
        ids: Tensor = tokenizer(
            list(captions),
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
    return ids
