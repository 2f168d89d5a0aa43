"""The `[data]` section: the training pictures, their captions, and what is done to both.

Knows nothing of how a picture is read.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from trainscope.config.section import Section

Side = Annotated[int, Field(ge=16, le=4096, multiple_of=8)]
Cache = Literal["memory", "disk", "off"]


class BucketsSection(Section):
    """Aspect-ratio buckets: pictures keep their shape, and a batch has pictures of one shape."""

    enabled: bool = False
    """Train each picture at the bucket nearest to its shape, all of about `data.resolution`² pixels."""
    min: Side = 256
    """The smallest side of a bucket, in pixels."""
    max: Side = 1024
    """The largest side of a bucket, in pixels."""
    step: Annotated[int, Field(ge=8, le=1024, multiple_of=8)] = 64
    """Sides of buckets are multiples of this, in pixels."""


class DataSection(Section):
    """The training images and their captions."""

    dir: str
    """Folder of images, each with a caption file of the same name beside it."""
    caption_extension: Annotated[str, Field(pattern=r"^\.[A-Za-z0-9]+$")] = ".txt"
    """Ending of the caption files."""
    repeats: PositiveInt = 1
    """How often an epoch visits each training image."""
    resolution: Side = 512
    """Side of the square that images are resized and cropped to, in pixels; with buckets its area is kept."""
    buckets: BucketsSection = BucketsSection()
    """Aspect-ratio buckets."""
    random_crop: bool = False
    """Crop at a random place, drawn anew at every visit, instead of the centre; needs cache_latents = "off"."""
    flip: bool = False
    """Mirror each image left to right at half of its visits."""
    shuffle_captions: bool = False
    """Reorder the comma-separated tags of a caption at every visit."""
    keep_tokens: NonNegativeInt = 0
    """How many of the first tags stay in their place when tags are shuffled."""
    caption_dropout: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the visits that train on an empty caption, which guidance needs."""
    weighted_captions: bool = False
    """Read (word:1.2), (word) and [word] in captions as emphasis, as user interfaces do."""
    max_tokens: Literal[75, 150, 225] = 75
    """Tokens of a caption that are used; above 75 it is encoded in chunks of 75."""
    cache_latents: Cache = "memory"
    """Where encoded images are kept: in memory, also on disk for the next run, or encoded anew at every visit."""
    cache_text: Cache = "memory"
    """Likewise for encoded captions; where the text encoder is trained or captions are shuffled, each visit encodes."""
    cache_dir: Annotated[str | None, Field(examples=["cache"])] = None
    """Folder of the caches on disk, relative to the configuration; the user's cache folder if not given."""
    validation_split: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    """Share of the images held out to measure what is learned; 0 measures on training images."""
    mask_dir: Annotated[str | None, Field(examples=["masks"])] = None
    """Inpainting: folder of masks (white is repainted), named like the images; random masks if not given."""
    on_corrupt: Literal["fail", "skip"] = "fail"
    """What to do about an image that cannot be read."""
