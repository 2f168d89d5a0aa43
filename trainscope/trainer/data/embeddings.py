"""What the text encoders make of captions, kept in memory and on disk, or computed at every visit.

Knows nothing of training or noise.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from trainscope.trainer.data.cache import DiskCache, model_identity
from trainscope.trainer.models.load import Components
from trainscope.trainer.models.text import TextEmbedding, encode_text, tokenize


@dataclass
class Embeddings:
    """The embeddings of captions, and how they are made: the arguments of `encode_text`.

    `kept` has those in memory, each as a batch of one, float32 on the CPU. What is not kept is encoded at the visit:
    one by one with `one_by_one`, so that the numbers are those of a caption that is kept, or else all of a batch at
    once, which is quicker.
    """

    clip_skip: int = 1
    max_tokens: int = 75
    weighted: bool = False
    one_by_one: bool = True
    kept: dict[str, TextEmbedding] = field(default_factory=dict)

    def count(self, components: Components, caption: str) -> tuple[int, int]:
        """The tokens of a caption (of SDXL's first tokenizer), and how many of them are cut off."""
        found = tokenize(components.tokenizer, caption, max_tokens=self.max_tokens, weighted=self.weighted).count
        return found, max(0, found - self.max_tokens)

    def keep(self, components: Components, captions: Iterable[str], disk: DiskCache | None) -> None:
        """Encode each different caption now, or read it from disk."""
        for caption in dict.fromkeys(captions):
            if disk is None:
                made = self._frozen(components, [caption])
                self.kept[caption] = TextEmbedding(
                    made.hidden.cpu(), None if made.pooled is None else made.pooled.cpu()
                )
            else:
                self.kept[caption] = self._from(disk, components, caption)

    def of(self, components: Components, captions: Sequence[str]) -> TextEmbedding:
        """The embeddings of captions by frozen encoders, float32 [b, tokens, dim]: those kept, else encoded now."""
        if not self.one_by_one and not all(caption in self.kept for caption in captions):
            return self._frozen(components, captions)
        found = [self.kept.get(caption) or self._frozen(components, [caption]) for caption in captions]
        pooled = [embedding.pooled for embedding in found if embedding.pooled is not None]
        return TextEmbedding(
            torch.cat([embedding.hidden for embedding in found]), torch.cat(pooled) if pooled else None
        )

    def encode(self, components: Components, captions: Sequence[str]) -> TextEmbedding:
        """Encode captions at once, with a gradient where the encoders are trained."""
        return encode_text(
            components, captions, clip_skip=self.clip_skip, max_tokens=self.max_tokens, weighted=self.weighted
        )

    @torch.no_grad()
    def _frozen(self, components: Components, captions: Sequence[str]) -> TextEmbedding:
        encoded = self.encode(components, captions)
        return TextEmbedding(encoded.hidden.float(), None if encoded.pooled is None else encoded.pooled.float())

    def _from(self, disk: DiskCache, components: Components, caption: str) -> TextEmbedding:
        def make() -> dict[str, Any]:
            made = self._frozen(components, [caption])
            return {"hidden": made.hidden} | ({} if made.pooled is None else {"pooled": made.pooled})

        # By its tokens: whatever of the caption and the tokenizers changes the embedding changes them.
        tokens = [
            tokenize(tokenizer, caption, max_tokens=self.max_tokens, weighted=self.weighted)
            for tokenizer in components.tokenizers
        ]
        found = disk.get(
            make,
            ids=[found.ids for found in tokens],
            weights=[found.weights for found in tokens],
            weighted=self.weighted,
            clip_skip=self.clip_skip,
        )
        return TextEmbedding(found["hidden"], found.get("pooled"))


def text_identity(components: Components) -> dict[str, Any]:
    """What of the text encoders an embedding depends on."""
    return {"kind": "text", "sdxl": components.sdxl, **model_identity(*components.text_encoders)}
