"""Aspect-ratio buckets, and what cannot be asked of the data."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainscope.config.buckets import Size, batches_per_epoch, bucket_sizes, nearest_bucket
from trainscope.config.data import BucketsSection, DataSection
from trainscope.config.load import parse_config
from trainscope.errors import ConfigError


def section(resolution: int, low: int, high: int, step: int) -> DataSection:
    return DataSection(
        dir=".", resolution=resolution, buckets=BucketsSection(enabled=True, min=low, max=high, step=step)
    )


def test_without_buckets_there_is_one_square() -> None:
    assert bucket_sizes(DataSection(dir=".", resolution=48)) == [(48, 48)]


def test_the_usual_buckets_of_stable_diffusion() -> None:
    sizes = bucket_sizes(section(512, 256, 1024, 64))
    assert {(512, 512), (448, 576), (576, 448), (256, 1024), (1024, 256), (384, 640)} <= set(sizes)
    assert len(sizes) == len(set(sizes))


STEPS = st.sampled_from([8, 16, 32, 64])


@given(STEPS, st.integers(2, 8), st.integers(0, 12), st.integers(0, 12))
def test_buckets_keep_to_what_is_asked(step: int, low: int, more: int, inside: int) -> None:
    """All sides are multiples between the bounds, no area is larger, and no side could be longer."""
    low, high = low * step, (low + more) * step
    resolution = min(high, low + inside * 8)
    sizes = bucket_sizes(section(resolution, low, high, step))
    allowed = range(low, high + 1, step)
    assert sizes
    assert (resolution // step * step,) * 2 in sizes
    for width, height in sizes:
        assert width in allowed
        assert height in allowed
        assert width * height <= resolution**2
        assert (height, width) in sizes
    for width in allowed:  # the largest of each width, by trying all heights
        heights = [height for height in allowed if width * height <= resolution**2]
        if heights:
            assert (width, max(heights)) in sizes


def reference(size: Size, sizes: list[Size]) -> float:
    return min(max(w / h * size[1] / size[0], h / w * size[0] / size[1]) for w, h in sizes)


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_a_picture_goes_to_the_nearest_shape(width: int, height: int) -> None:
    sizes = bucket_sizes(section(512, 256, 1024, 64))
    found = nearest_bucket((width, height), sizes)
    assert math.isclose(reference((width, height), [found]), reference((width, height), sizes))
    turned = nearest_bucket((height, width), sizes)
    assert math.isclose(reference((width, height), [turned[::-1]]), reference((width, height), [found]))


def test_of_alike_buckets_the_largest_is_taken() -> None:
    assert nearest_bucket((30, 10), [(96, 32), (192, 64), (33, 11), (64, 64)]) == (192, 64)


def test_each_bucket_may_end_with_a_short_batch() -> None:
    assert batches_per_epoch([2, 2, 1], 2) == 3
    assert batches_per_epoch([2, 2, 1], 2, repeats=3) == 3 + 3 + 2
    assert batches_per_epoch([], 2) == 0


def refusal(*overrides: str) -> str:
    base = '[model]\nbase = "tiny:sd15"\n[train]\nsteps = 1\n[data]\ndir = "."\n'
    with pytest.raises(ConfigError) as caught:
        parse_config(base, overrides=overrides)
    return "\n".join(caught.value.problems)


BUCKETS = ("data.buckets.enabled=true", "data.resolution=512")

REFUSED: dict[tuple[str, ...], str] = {
    (*BUCKETS, "data.buckets.min=600", "data.buckets.max=520", "data.buckets.step=40"): (
        "data.buckets.min = 600: above data.buckets.max = 520"
    ),
    (*BUCKETS, "data.buckets.min=640"): "data.resolution = 512: not between data.buckets.min = 640",
    (*BUCKETS, "data.buckets.min=128", "data.buckets.max=448"): "and data.buckets.max = 448",
    (*BUCKETS, "data.buckets.min=200"): "data.buckets.min = 200: not a multiple of data.buckets.step = 64; 192 is",
    (*BUCKETS, "data.buckets.max=1000"): "data.buckets.max = 1000: not a multiple of data.buckets.step = 64; 1024 is",
    ("data.buckets.step=12",): "data.buckets.step = 12",
    ("data.buckets.min=8",): "data.buckets.min = 8",
    ("data.buckets.max=5000",): "data.buckets.max = 5000",
    ("data.repeats=0",): "data.repeats = 0",
    ("data.random_crop=true",): 'data.cache_latents = "memory"',
    ("data.random_crop=true", "data.cache_latents=disk"): 'set data.cache_latents = "off"',
    ("data.keep_tokens=2",): "data.keep_tokens = 2 with data.shuffle_captions = false",
    ("data.keep_tokens=-1", "data.shuffle_captions=true"): "data.keep_tokens = -1",
    ("data.caption_dropout=1.5",): "data.caption_dropout = 1.5",
    ("data.max_tokens=100",): "data.max_tokens = 100",
    ("data.cache_text=disk", "data.shuffle_captions=true"): "data.shuffle_captions = true",
    ("data.cache_text=disk", 'train.parts=["unet", "text_encoder"]'): "train.parts = text_encoder",
    ("data.cache_latents=ram",): 'data.cache_latents = "ram"',
    ("data.flip=0.5",): "data.flip = 0.5",
}


@pytest.mark.parametrize(("overrides", "says"), REFUSED.items(), ids=[" ".join(key) for key in REFUSED])
def test_what_cannot_be_is_refused(overrides: tuple[str, ...], says: str) -> None:
    assert says in refusal(*overrides)


def test_all_problems_come_at_once() -> None:
    said = refusal(*BUCKETS, "data.buckets.min=200", "data.buckets.max=1000", "data.random_crop=true")
    assert said.count("\n") == 2


def test_what_is_switched_off_is_not_minded() -> None:
    base = '[model]\nbase = "tiny:sd15"\n[train]\nsteps = 1\n[data]\ndir = "."\n'
    changes: dict[str, Any] = {"resolution": 64, "buckets.min": 640}
    for how in itertools.chain([[]], [[f"data.{key}={value}"] for key, value in changes.items()]):
        parse_config(base, overrides=how)
