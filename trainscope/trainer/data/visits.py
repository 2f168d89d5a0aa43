"""A sample as it is seen at a position: which part of the picture, mirrored or not, and with which caption.

All of it is drawn from (seed, position, visit), so it does not matter what was drawn before, on which process, or
whether the run was resumed. Knows nothing of files or models.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from trainscope.config.buckets import Size
from trainscope.config.data import DataSection
from trainscope.trainer.data.framing import Frame, centre_frame, random_frame
from trainscope.trainer.data.images import Sample
from trainscope.trainer.models.emphasis import split_tags
from trainscope.trainer.noise import generator

EVALUATION = -1
"""The position of an evaluation: samples are seen as they are, so that evaluations compare."""


@dataclass(frozen=True)
class Visit:
    """A sample as it is seen once. `number` is the visit's, which draws are named by."""

    number: int
    sample: Sample
    frame: Frame
    caption: str


def visit_sample(sample: Sample, number: int, section: DataSection, target: Size, *, seed: int, position: int) -> Visit:
    """Draw what the visit at a position of the training sees; at `EVALUATION` nothing is drawn."""
    original = (sample.width, sample.height)
    if position == EVALUATION:
        return Visit(number, sample, centre_frame(original, target), sample.caption)
    where = (position, number)
    mirrored = section.flip and _uniform(seed, "flip", *where) < 0.5
    if section.random_crop:
        frame = random_frame(original, target, generator=generator(seed, "crop", *where), mirrored=mirrored)
    else:
        frame = centre_frame(original, target, mirrored=mirrored)
    caption = sample.caption
    if section.caption_dropout > 0 and _uniform(seed, "caption dropout", *where) < section.caption_dropout:
        caption = ""
    elif section.shuffle_captions:
        stream = generator(seed, "tags", *where)
        caption = shuffle_tags(caption, section.keep_tokens, brackets=section.weighted_captions, generator=stream)
    return Visit(number, sample, frame, caption)


def shuffle_tags(caption: str, keep: int, *, brackets: bool = False, generator: torch.Generator) -> str:
    """Reorder the comma-separated tags of a caption, but for the first `keep`.

    With `brackets`, what is emphasised together stays together: (a, b:1.2) is one tag.
    """
    tags = split_tags(caption, brackets=brackets)
    kept, rest = tags[:keep], tags[keep:]
    order = torch.randperm(len(rest), generator=generator).tolist()
    return ", ".join([*kept, *(rest[place] for place in order)])


def _uniform(seed: int, *key: int | str) -> float:
    return float(torch.rand((), generator=generator(seed, *key)))
