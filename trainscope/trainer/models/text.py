"""Captions → what a UNet attends to, through one text encoder or SDXL's two.

Runs with or without a gradient, as the caller has it. Knows nothing of files, caches or training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainscope.errors import ModelError
from trainscope.trainer.models.emphasis import parse_emphasis, weigh
from trainscope.trainer.models.load import Components
from trainscope.trainer.models.quiet import quiet_libraries

CHUNK = 75
"""Tokens of a caption that CLIP reads at once, beside the start and the end."""


@dataclass(frozen=True)
class TextEmbedding:
    """`hidden` [b, tokens, dim] is attended to; `pooled` [b, dim] is SDXL's summary of the caption, else None."""

    hidden: Tensor
    pooled: Tensor | None


@dataclass(frozen=True)
class Tokens:
    """A caption in chunks, each with start, end and padding: `ids` and `weights` [chunks][77].

    `count` is the caption's tokens, those that did not fit among them.
    """

    ids: list[list[int]]
    weights: list[list[float]]
    count: int


def tokenize(tokenizer: Any, caption: str, *, max_tokens: int = CHUNK, weighted: bool = False) -> Tokens:
    """Cut a caption to `max_tokens`, a multiple of 75, in as many chunks as these need, empty ones included.

    Padded as the tokenizer does, so that up to 75 tokens are what diffusers' `encode_prompt` encodes. With `weighted`,
    emphasis is read (`parse_emphasis`); start, end and padding weigh 1.
    """
    parts = parse_emphasis(caption) if weighted else [(caption, 1.0)]
    ids: list[int] = []
    weights: list[float] = []
    with quiet_libraries():  # it warns of long captions; the `data` table says so, too
        for text, weight in parts:
            found = tokenizer(text, add_special_tokens=False).input_ids
            ids += found
            weights += [weight] * len(found)
    chunks = Tokens([], [], len(ids))
    for start in range(0, max_tokens, CHUNK):
        own = slice(start, start + CHUNK)
        padding = CHUNK - len(ids[own])
        chunks.ids.append(
            [tokenizer.bos_token_id, *ids[own], tokenizer.eos_token_id, *[tokenizer.pad_token_id] * padding]
        )
        chunks.weights.append([1.0, *weights[own], *[1.0] * (1 + padding)])
    return chunks


def encode_text(
    components: Components,
    captions: Sequence[str],
    *,
    clip_skip: int = 1,
    max_tokens: int = CHUNK,
    weighted: bool = False,
) -> TextEmbedding:
    """Encode captions: up to 75 tokens as diffusers' `encode_prompt` does, more in chunks whose embeddings are joined.

    Chunks of 75 as in stable-diffusion-webui and kohya-ss, start and end of each left in, as the former does; the
    pooled embedding is the first chunk's. `clip_skip` counts layers from the end, 1 being the one that the model was
    trained with: the last, for SDXL the last but one.
    """
    parts = []
    pooled = None
    for tokenizer, encoder in zip(components.tokenizers, components.text_encoders, strict=True):
        tokens = [tokenize(tokenizer, caption, max_tokens=max_tokens, weighted=weighted) for caption in captions]
        ids = torch.tensor([chunk for caption in tokens for chunk in caption.ids])
        output = encoder(ids.to(encoder.device), output_hidden_states=True)
        layer = _layer(encoder, output, clip_skip, sdxl=components.sdxl)
        if weighted:
            layer = weigh(layer, torch.tensor([chunk for caption in tokens for chunk in caption.weights]))
        parts.append(layer.reshape(len(captions), -1, layer.shape[-1]))
        if components.sdxl and "text_embeds" in output:
            pooled = output.text_embeds.reshape(len(captions), -1, output.text_embeds.shape[-1])[:, 0]
    return TextEmbedding(torch.cat(parts, dim=-1), pooled)


def _layer(encoder: Any, output: Any, clip_skip: int, *, sdxl: bool) -> Tensor:
    layers = len(output.hidden_states) - 1
    most = layers - 1 if sdxl else layers
    if clip_skip > most:
        raise ModelError(
            f"model.clip_skip = {clip_skip}: the text encoder has {layers} layers, so that at most {most} is possible",
            hint="1 is the layer that the model was trained with; anime models of Stable Diffusion 1 were with 2",
        )
    if sdxl:
        below: Tensor = output.hidden_states[-1 - clip_skip]
        return below
    if clip_skip == 1:
        last: Tensor = output.last_hidden_state
        return last
    model = getattr(encoder, "text_model", encoder)  # transformers before and since 5
    normed: Tensor = model.final_layer_norm(output.hidden_states[-clip_skip])
    return normed
