"""The training data held ready: which images are trained on and which held out, in which buckets, and how each visit
sees them.

Knows nothing of noise or loss.
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

from trainscope.config.buckets import Size, batches_per_epoch, bucket_sizes, nearest_bucket
from trainscope.config.data import DataSection
from trainscope.config.load import ResolvedConfig
from trainscope.errors import DataError
from trainscope.trainer.data.cache import DiskCache, default_folder, model_identity
from trainscope.trainer.data.embeddings import Embeddings, text_identity
from trainscope.trainer.data.framing import Frame, centre_frame
from trainscope.trainer.data.images import Sample, find_samples, load_image
from trainscope.trainer.data.latents import Latents
from trainscope.trainer.data.masks import find_masks, load_mask, random_mask
from trainscope.trainer.data.order import MicroBatch, micro_batches, sample_of
from trainscope.trainer.data.split import split_validation
from trainscope.trainer.data.visits import EVALUATION, Visit, visit_sample
from trainscope.trainer.models.emphasis import split_tags
from trainscope.trainer.models.load import Components
from trainscope.trainer.models.vae import vae_encode
from trainscope.trainer.noise import generator

FIXED_SEED = 0
"""Not the run's: runs with different seeds are measured on the same images, and behind the same masks."""


@dataclass
class TrainingData:
    """Samples, and what the encoders make of them."""

    section: DataSection
    samples: list[Sample]
    train: list[int]
    validation: list[int]
    buckets: dict[int, Size]
    """The size that each used sample is trained at, in px."""
    tokens: dict[int, tuple[int, int]]
    """Tokens of each used sample's caption, and how many of them are cut off."""
    latents: Latents
    embeddings: Embeddings
    masks: dict[int, Path] | None
    """Mask files of an inpainting model by sample; None draws them."""

    @property
    def evaluation(self) -> list[int]:
        """The samples that the held-out loss is taken on: those trained on if none are held out."""
        return self.validation or self.train

    @property
    def split(self) -> str:
        return "validation" if self.validation else "train"

    @property
    def groups(self) -> list[list[int]]:
        """The samples that are trained on, by bucket: a batch has samples of one."""
        grouped: dict[Size, list[int]] = {}
        for sample in self.train:
            grouped.setdefault(self.buckets[sample], []).append(sample)
        return [grouped[size] for size in sorted(grouped)]

    @property
    def counts(self) -> list[int]:
        """How many samples each bucket trains on."""
        return [len(group) for group in self.groups]

    def batches_per_epoch(self, batch_size: int) -> int:
        return batches_per_epoch(self.counts, batch_size, repeats=self.section.repeats)

    def micro_batches(self, batch_size: int, *, seed: int, start: int = 0) -> Iterator[MicroBatch]:
        """The batches of training, without end."""
        return micro_batches(self.groups, batch_size, seed=seed, start=start, repeats=self.section.repeats)

    def visits(self, numbers: Sequence[int], *, seed: int, position: int) -> list[Visit]:
        """What is seen of samples at a position of the training, or at `EVALUATION`."""
        samples = [self.samples[sample_of(number)] for number in numbers]
        return [
            visit_sample(sample, number, self.section, self.buckets[sample.index], seed=seed, position=position)
            for number, sample in zip(numbers, samples, strict=True)
        ]

    @torch.no_grad()
    def inpainting_condition(
        self, components: Components, visits: Sequence[Visit], *, seed: int, position: int
    ) -> Tensor:
        """Mask and masked image's latents [b, 5, h/8, w/8], as Stable Diffusion's inpainting UNet takes them.

        A random mask depends on (seed, position, visit). The mask's latent has the nearest pixel, so it stays binary.
        """
        seed = FIXED_SEED if position == EVALUATION else seed
        masks = torch.stack([self._mask(visit, seed=seed, position=position) for visit in visits])
        images = torch.stack([load_image(visit.sample, visit.frame) for visit in visits])
        masked = vae_encode(components.vae, images * (masks < 0.5))
        small = torch.nn.functional.interpolate(masks, size=masked.shape[-2:])
        return torch.cat([small.to(masked.device), masked], dim=1)

    def _mask(self, visit: Visit, *, seed: int, position: int) -> Tensor:
        if self.masks is not None:
            return load_mask(self.masks[visit.sample.index], visit.frame)
        width, height = visit.frame.target
        return random_mask(height, width, generator=generator(seed, "mask", position, visit.number))

    @property
    def is_kept(self) -> bool:
        """Whether the latents and embeddings of all visits were computed beforehand."""
        return self.section.cache_latents != "off" and bool(self.embeddings.kept)

    def identity(self) -> str:
        """A digest of what a position of the training means: the images and captions that are trained on, wherever
        they lie, their buckets and their repeats. How they are seen may change on the way.
        """
        groups = [
            [(self.samples[index].digest, self.samples[index].caption) for index in group] for group in self.groups
        ]
        seen = {"groups": groups, "repeats": self.section.repeats}
        return hashlib.sha256(json.dumps(seen).encode()).hexdigest()

    def rows(self) -> list[dict[str, Any]]:
        """The `data` table."""
        train, validation = set(self.train), set(self.validation)
        return [
            {
                "sample": sample.index,
                "path": sample.path.name,
                "width": sample.width,
                "height": sample.height,
                "digest": sample.digest,
                "phash": sample.phash,
                "dropped": sample.dropped,
                **(self._used_row(sample) if sample.index in train | validation else {}),
                "split": "train" if sample.index in train else "validation" if sample.index in validation else None,
                "repeats": self.section.repeats if sample.index in train else 0,
            }
            for sample in self.samples
        ]

    def _used_row(self, sample: Sample) -> dict[str, Any]:
        width, height = self.buckets[sample.index]
        tokens, truncated = self.tokens[sample.index]
        tags = len(split_tags(sample.caption, brackets=self.section.weighted_captions))
        return {"bucket": f"{width}x{height}", "tokens": tokens, "truncated": truncated, "tags": tags}


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
    if masks is not None and not components.inpainting:
        raise DataError(
            f"data.mask_dir is set, and {components.source} is not an inpainting model: it takes no masks",
            hint="leave data.mask_dir out, or train an inpainting model",
        )
    train, validation = split_validation(samples, section.validation_split, FIXED_SEED)
    used = [*train, *validation]
    sizes = bucket_sizes(section)
    data = TrainingData(
        section=section,
        samples=samples,
        train=[sample.index for sample in train],
        validation=[sample.index for sample in validation],
        buckets={sample.index: nearest_bucket((sample.width, sample.height), sizes) for sample in used},
        tokens={},
        latents=Latents(),
        embeddings=Embeddings(
            clip_skip=resolved.config.model.clip_skip,
            max_tokens=section.max_tokens,
            weighted=section.weighted_captions,
            one_by_one=not section.shuffle_captions,
        ),
        masks=masks,
    )
    data.tokens = {sample.index: data.embeddings.count(components, sample.caption) for sample in used}
    _keep(data, resolved, components, warn)
    return data


def _keep(data: TrainingData, resolved: ResolvedConfig, components: Components, warn: Callable[[str], None]) -> None:
    """Encode what does not change from visit to visit."""
    section = data.section
    folder = resolved.resolve_path(section.cache_dir) if section.cache_dir else default_folder()
    if section.cache_latents != "off":
        disk = None
        if section.cache_latents == "disk":
            disk = DiskCache(folder / "latents", {"kind": "latent", **model_identity(components.vae)}, warn)
        data.latents.keep(components.vae, _frames(data), disk)
    is_trained = "text_encoder" in resolved.config.train.parts
    if section.cache_text != "off" and not is_trained and not section.shuffle_captions:
        disk = DiskCache(folder / "text", text_identity(components), warn) if section.cache_text == "disk" else None
        captions = [data.samples[number].caption for number in (*data.train, *data.validation)]
        data.embeddings.keep(components, [*captions, ""] if section.caption_dropout > 0 else captions, disk)


def _frames(data: TrainingData) -> Iterator[tuple[Sample, Frame]]:
    """What visits see of the pictures, without random crops: a mirrored picture's latent is not a mirrored latent."""
    for numbers, ways in ((data.train, (False, True) if data.section.flip else (False,)), (data.validation, (False,))):
        for number in numbers:
            sample = data.samples[number]
            for mirrored in ways:
                yield sample, centre_frame((sample.width, sample.height), data.buckets[number], mirrored=mirrored)


def preview_image(data: TrainingData, width: int, height: int) -> tuple[Image.Image, Image.Image]:
    """A held-out image and a mask over its middle, for the sample images of an inpainting model."""
    (visit,) = data.visits(data.evaluation[:1], seed=FIXED_SEED, position=EVALUATION)
    picture = load_image(visit.sample, visit.frame)
    pixels = ((picture.permute(1, 2, 0).numpy() + 1) * 127.5).round().astype(np.uint8)
    mask = Image.new("L", (width, height), 0)
    mask.paste(255, (width // 4, height // 4, width - width // 4, height - height // 4))
    return Image.fromarray(pixels).resize((width, height)), mask
