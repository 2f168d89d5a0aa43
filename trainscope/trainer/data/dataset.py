"""The training data held ready: which images are trained on and which held out, their latents and text embeddings.

The encoders are frozen, so everything is encoded once. Knows nothing of noise or loss.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trainscope.config.load import ResolvedConfig
from trainscope.trainer.data.images import Sample, find_samples, fit_square, load_image
from trainscope.trainer.data.latents import EncodedCaptions, encode_captions, encode_images
from trainscope.trainer.data.masks import find_masks, load_mask, random_mask
from trainscope.trainer.data.order import MicroBatch, micro_batches
from trainscope.trainer.data.split import split_validation
from trainscope.trainer.models.load import Components
from trainscope.trainer.noise import generator

SPLIT_SEED = 0
"""Not the run's: runs with different seeds are measured on the same images."""


@dataclass
class TrainingData:
    """Samples, and what the encoders make of them; `latents` [n, 4, h, w] and `captions` are indexed like `samples`."""

    samples: list[Sample]
    train: list[int]
    validation: list[int]
    latents: Tensor
    captions: EncodedCaptions
    resolution: int
    masks: dict[int, Path] | None
    """Mask files of an inpainting model by sample; None draws them."""

    @property
    def evaluation(self) -> list[int]:
        """The samples that the held-out loss is taken on: those trained on if none are held out."""
        return self.validation or self.train

    @property
    def split(self) -> str:
        return "validation" if self.validation else "train"

    def micro_batches(self, batch_size: int, *, seed: int, start: int = 0) -> Iterator[MicroBatch]:
        """The batches of training, without end."""
        return micro_batches(self.train, batch_size, seed=seed, start=start)

    @torch.no_grad()
    def inpainting_condition(self, components: Components, samples: Sequence[int], *, seed: int, step: int) -> Tensor:
        """Mask and masked image's latents [b, 5, h, w], as Stable Diffusion's inpainting UNet takes them.

        A random mask depends on (seed, step, sample). The mask's latent has the nearest pixel, so it stays binary.
        """
        masks = torch.stack([self._mask(sample, seed=seed, step=step) for sample in samples])
        images = torch.stack([load_image(self.samples[sample], self.resolution) for sample in samples])
        masked = encode_images(components.vae, list(images * (masks < 0.5)), batch=len(samples))
        small = torch.nn.functional.interpolate(masks, size=self.latents.shape[-2:])
        return torch.cat([small, masked], dim=1)

    def _mask(self, sample: int, *, seed: int, step: int) -> Tensor:
        if self.masks is not None:
            return load_mask(self.masks[sample], self.samples[sample], self.resolution)
        return random_mask(self.resolution, self.resolution, generator=generator(seed, "mask", step, sample))

    def size_conditions(self, samples: Sequence[int]) -> Tensor:
        """What SDXL is told of pictures, [b, 6]: original size, the crop's corner and the target size, as (y, x)."""
        rows = []
        for sample in samples:
            width, height = self.samples[sample].width, self.samples[sample].height
            _, (left, top, _, _) = fit_square((width, height), self.resolution)
            rows.append([height, width, top, left, self.resolution, self.resolution])
        return torch.tensor(rows, dtype=torch.float32)

    def identity(self) -> str:
        """A digest of the images and captions that are trained on, in their order, wherever they lie."""
        seen = [(self.samples[index].digest, self.samples[index].caption) for index in self.train]
        return hashlib.sha256(json.dumps(seen).encode()).hexdigest()

    def rows(self) -> list[dict[str, Any]]:
        """The `data` table."""
        used = set(self.train) | set(self.validation)
        return [
            {
                "sample": sample.index,
                "path": sample.path.name,
                "width": sample.width,
                "height": sample.height,
                "bucket": f"{self.resolution}x{self.resolution}",
                "split": None if sample.index not in used else "train" if sample.index in self.train else "validation",
                "tokens": self.captions.tokens[sample.index],
                "truncated": self.captions.truncated[sample.index],
                "repeats": 1,
                "digest": sample.digest,
                "phash": sample.phash,
                "dropped": sample.dropped,
            }
            for sample in self.samples
        ]


def load_data(resolved: ResolvedConfig, components: Components, *, warn: Callable[[str], None]) -> TrainingData:
    """Find, check, split and encode the images. Raises `DataError` with everything that is wrong with them."""
    section = resolved.config.data
    samples = find_samples(
        resolved.resolve_path(section.dir),
        caption_extension=section.caption_extension,
        on_corrupt=section.on_corrupt,
        warn=warn,
    )
    masks = find_masks(resolved.resolve_path(section.mask_dir), samples) if section.mask_dir else None
    train, validation = split_validation(samples, section.validation_split, SPLIT_SEED)
    used = [sample for sample in samples if sample.dropped is None]
    encoded = encode_images(components.vae, (load_image(sample, section.resolution) for sample in used))
    latents = torch.zeros(len(samples), *encoded.shape[1:])
    latents[[sample.index for sample in used]] = encoded
    return TrainingData(
        samples=samples,
        train=[sample.index for sample in train],
        validation=[sample.index for sample in validation],
        latents=latents,
        captions=encode_captions(
            components, [sample.caption for sample in samples], clip_skip=resolved.config.model.clip_skip
        ),
        resolution=section.resolution,
        masks=masks,
    )


def preview_image(data: TrainingData, width: int, height: int) -> tuple[Image.Image, Image.Image]:
    """A held-out image and a mask over its middle, for the sample images of an inpainting model."""
    picture = load_image(data.samples[data.evaluation[0]], data.resolution)
    pixels = ((picture.permute(1, 2, 0).numpy() + 1) * 127.5).round().astype(np.uint8)
    mask = Image.new("L", (width, height), 0)
    mask.paste(255, (width // 4, height // 4, width - width // 4, height - height // 4))
    return Image.fromarray(pixels).resize((width, height)), mask
