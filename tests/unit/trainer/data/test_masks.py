from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from trainscope.errors import DataError
from trainscope.trainer.data.framing import Frame, centre_frame, random_frame
from trainscope.trainer.data.images import Sample, find_samples, load_image
from trainscope.trainer.data.masks import find_masks, load_mask, random_mask

Pictures = Callable[..., Path]


def square(sample: Sample, side: int = 64) -> Frame:
    return centre_frame((sample.width, sample.height), (side, side))


def test_random_masks_are_binary_inside_and_reproducible() -> None:
    shapes = set()
    for seed in range(60):
        mask = random_mask(48, 64, generator=torch.Generator().manual_seed(seed))
        assert mask.shape == (1, 48, 64)
        assert mask.dtype == torch.float32
        assert set(mask.flatten().tolist()) <= {0.0, 1.0}
        assert 0.03 < float(mask.mean()) < 0.6
        assert torch.equal(mask, random_mask(48, 64, generator=torch.Generator().manual_seed(seed)))
        rows, columns = mask[0].any(1), mask[0].any(0)
        shapes.add(bool(mask[0][rows][:, columns].all()))  # a rectangle fills its bounding box
    assert shapes == {True, False}


def test_a_mask_is_never_empty() -> None:
    for seed in range(50):
        assert random_mask(3, 5, generator=torch.Generator().manual_seed(seed), min_side=0, max_side=0.1).any()


def test_drawing_a_mask_leaves_the_global_state_alone() -> None:
    state = torch.get_rng_state()
    random_mask(8, 8, generator=torch.Generator())
    assert torch.equal(torch.get_rng_state(), state)


def test_masks_of_a_folder_are_cut_like_their_pictures(pictures: Pictures, tmp_path: Path) -> None:
    folder = pictures("a.png", size=(96, 48))
    masks = tmp_path / "masks"
    masks.mkdir()
    mask = Image.new("L", (192, 96), 0)
    mask.paste(255, (96, 0, 192, 96))  # the right half
    mask.save(masks / "a.webp", lossless=True)
    samples = find_samples(folder)
    found = find_masks(masks, samples)
    assert found == {0: masks / "a.webp"}
    loaded = load_mask(found[0], square(samples[0]))
    assert loaded.shape == (1, 64, 64)
    assert not loaded[..., :32].any()
    assert loaded[..., 32:].all()


def test_grey_edges_become_binary(pictures: Pictures, tmp_path: Path) -> None:
    samples = find_samples(pictures("a.png", size=(64, 64)))
    masks = tmp_path / "masks"
    masks.mkdir()
    Image.linear_gradient("L").save(masks / "a.png")
    assert set(load_mask(masks / "a.png", square(samples[0])).flatten().tolist()) == {0.0, 1.0}


def test_missing_masks_are_named(pictures: Pictures, tmp_path: Path) -> None:
    samples = find_samples(pictures("a.png", "b.png"))
    masks = tmp_path / "masks"
    with pytest.raises(DataError, match="does not exist"):
        find_masks(masks, samples)
    masks.mkdir()
    Image.new("L", (8, 8)).save(masks / "a.png")
    with pytest.raises(DataError, match=r"1 of 2 pictures have no mask in .*: b\.png"):
        find_masks(masks, samples)


def test_a_mask_is_cropped_and_mirrored_like_its_picture(pictures: Pictures, tmp_path: Path) -> None:
    """A picture whose red part is masked: in every frame the mask lies where the picture is red."""
    folder = pictures()
    painted = Image.new("RGB", (96, 48), "blue")
    painted.paste("red", (60, 8, 90, 30))
    painted.save(folder / "a.png")
    mask = Image.new("L", (96, 48), 0)
    mask.paste(255, (60, 8, 90, 30))
    mask.save(tmp_path / "a.png")
    sample = find_samples(folder)[0]
    seen = set()
    for seed in range(12):
        stream = torch.Generator().manual_seed(seed)
        for target in ((48, 48), (32, 64), (192, 96)):
            frame = random_frame((96, 48), target, generator=stream, mirrored=seed % 2 == 0)
            red = load_image(sample, frame)[0] > 0
            found = load_mask(tmp_path / "a.png", frame)[0] > 0
            assert found.shape == (target[1], target[0])
            assert float((red != found).float().mean()) < 0.03  # Lanczos blurs what the nearest neighbour does not
            seen.add(float(found.float().mean()))
    assert len(seen) > 10


def test_a_mask_that_does_not_decode_is_named(pictures: Pictures, tmp_path: Path) -> None:
    samples = find_samples(pictures("a.png"))
    (tmp_path / "a.png").write_bytes(b"no mask")
    with pytest.raises(DataError, match=r"the mask .*a\.png cannot be read"):
        load_mask(tmp_path / "a.png", square(samples[0]))
