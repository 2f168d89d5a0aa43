"""What of a picture is seen at a visit, and with which caption."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from trainscope.config.data import DataSection
from trainscope.trainer.data.framing import Frame, centre_frame, cover, random_frame
from trainscope.trainer.data.images import Sample
from trainscope.trainer.data.visits import EVALUATION, Visit, shuffle_tags, visit_sample

SIDES = st.integers(1, 300)
Sizes = st.tuples(SIDES, SIDES)


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(Sizes, Sizes, st.integers(0, 5))
def test_a_frame_covers_its_target_and_no_more(original: tuple[int, int], target: tuple[int, int], seed: int) -> None:
    scaled = cover(original, target)
    assert all(room >= side for room, side in zip(scaled, target, strict=True))
    assert scaled[0] == target[0] or scaled[1] == target[1]
    assert all(
        abs(s - o * max(target[0] / original[0], target[1] / original[1])) <= 1
        for s, o in zip(scaled, original, strict=True)
    )
    centre = centre_frame(original, target)
    assert abs(2 * centre.left + target[0] - scaled[0]) <= 1
    assert abs(2 * centre.top + target[1] - scaled[1]) <= 1
    crop = random_frame(original, target, generator=stream(seed))
    assert 0 <= crop.left <= scaled[0] - target[0]
    assert 0 <= crop.top <= scaled[1] - target[1]


def test_random_crops_reach_every_place_alike() -> None:
    generator = stream()
    found = Counter(random_frame((20, 10), (10, 10), generator=generator).left for _ in range(2200))
    assert sorted(found) == list(range(11))
    assert all(140 < count < 270 for count in found.values())


def test_cutting_by_hand() -> None:
    """A picture of its own size: what is cut is a slice of the array, mirrored it is read backwards."""
    pixels = np.arange(6 * 8, dtype=np.uint8).reshape(6, 8)
    picture = Image.fromarray(pixels)
    for mirrored in (False, True):
        frame = Frame((8, 6), (8, 6), 3, 1, (4, 5), mirrored)
        wanted = pixels[1:6, 3:7]
        assert np.array_equal(frame.cut(picture, Image.Resampling.LANCZOS), wanted[:, ::-1] if mirrored else wanted)


def test_sdxl_is_told_the_crop_that_is_seen() -> None:
    """In a picture whose every pixel tells its place, the corner is where the first pixel seen comes from."""
    width, height = 31, 20
    for seed in range(8):
        frame = random_frame((62, 40), (width - 9, height), generator=stream(seed), mirrored=seed % 2 == 1)
        assert frame.scaled == (width, height)
        columns = np.broadcast_to(np.arange(width, dtype=np.uint8), (height, width))
        shown = columns[:, ::-1] if frame.mirrored else columns  # the resized picture, as it is looked at
        told = frame.size_condition
        assert told[:2] == [40, 62]
        assert told[4:] == [height, width - 9]
        cut = np.asarray(
            frame.cut(
                Image.fromarray(columns.copy()).resize((62, 40), Image.Resampling.NEAREST), Image.Resampling.NEAREST
            )
        )
        assert np.array_equal(cut, shown[told[2] : told[2] + height, told[3] : told[3] + width - 9])


SAMPLE = Sample(4, Path("a.png"), 100, 60, "a, b, c, d, e, f", "digest", "hash")


def visit(position: int = 0, number: int = 4, seed: int = 1, **section: Any) -> Visit:
    if section.get("random_crop"):
        section["cache_latents"] = "off"
    return visit_sample(SAMPLE, number, DataSection(dir=".", **section), (64, 64), seed=seed, position=position)


def test_by_default_nothing_is_drawn() -> None:
    assert visit() == visit(position=7, seed=3) == Visit(4, SAMPLE, centre_frame((100, 60), (64, 64)), SAMPLE.caption)


ALL: dict[str, Any] = {
    "flip": True,
    "random_crop": True,
    "shuffle_captions": True,
    "keep_tokens": 1,
    "caption_dropout": 0.25,
}


def test_an_evaluation_sees_samples_as_they_are() -> None:
    assert visit(EVALUATION, **ALL) == visit()


def test_what_is_drawn_depends_on_seed_position_and_visit_only() -> None:
    state = torch.get_rng_state()
    first = [visit(position, **ALL) for position in range(20)]
    assert [visit(position, **ALL) for position in reversed(range(20))] == first[::-1]
    assert [visit(position, seed=2, **ALL) for position in range(20)] != first
    assert [visit(position, number=5, **ALL) for position in range(20)] != first
    assert torch.equal(torch.get_rng_state(), state)


def test_shares_are_what_was_asked_for() -> None:
    seen = [visit(position, **ALL) for position in range(2000)]
    assert sum(one.frame.mirrored for one in seen) == pytest.approx(1000, abs=100)
    assert sum(one.caption == "" for one in seen) == pytest.approx(500, abs=80)
    together = sum(one.frame.mirrored and one.caption == "" for one in seen)  # neither tells of the other
    assert together == pytest.approx(250, abs=60)
    assert all(one.caption == "" for one in (visit(n, caption_dropout=1.0) for n in range(9)))
    assert len({one.frame.left for one in seen}) == cover((100, 60), (64, 64))[0] - 64 + 1


def test_tags_are_shuffled_but_for_the_first() -> None:
    orders = Counter(shuffle_tags("x, y, a, b,c", 2, generator=stream(seed)) for seed in range(600))
    assert len(orders) == 6
    assert all(order.startswith("x, y, ") for order in orders)
    assert all(60 < count < 140 for count in orders.values())
    assert shuffle_tags("a, b", 9, generator=stream()) == "a, b"
    assert shuffle_tags("", 0, generator=stream()) == ""
    torn = {shuffle_tags("(a, b:1.2), c", 0, brackets=True, generator=stream(seed)) for seed in range(20)}
    assert torn == {"(a, b:1.2), c", "c, (a, b:1.2)"}


def test_shuffling_reads_emphasis_where_captions_have_it() -> None:
    sample = Sample(0, Path("a.png"), 64, 64, "(a, b:1.2), c", "digest", "hash")
    section = DataSection(dir=".", shuffle_captions=True, weighted_captions=True)
    seen = {visit_sample(sample, 0, section, (64, 64), seed=0, position=n).caption for n in range(20)}
    assert seen == {"(a, b:1.2), c", "c, (a, b:1.2)"}
