"""The training images, held ready: latents and text embeddings in memory, and the order in which they are used.

Knows nothing of noise or loss.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainscope.config.load import ResolvedConfig
from trainscope.errors import DataError
from trainscope.trainer.data.images import Sample, find_samples, load_image
from trainscope.trainer.data.latents import encode_captions, encode_images
from trainscope.trainer.data.masks import folder_mask, random_mask
from trainscope.trainer.data.order import micro_batches
from trainscope.trainer.data.split import split_validation
from trainscope.trainer.models.load import Components
from trainscope.trainer.noise import generator

SPLIT_SEED = 0
"""Not the run's: runs with different seeds are measured on the same images."""


@dataclass
class TrainingData:
    """Samples with their latents [n, 4, h, w] and text embeddings [n, tokens, dim], indexed like `samples`."""

    samples: list[Sample]
    train: list[int]
    validation: list[int]
    latents: Tensor
    text: Tensor
    tokens: list[int]
    truncated: list[int]
    resolution: int
    mask_dir: Any = None

    @property
    def evaluation(self) -> list[int]:
        """The samples that the held-out loss is taken on: training samples if none are held out."""
        return self.validation or self.train

    @property
    def split(self) -> str:
        return "validation" if self.validation else "train"
