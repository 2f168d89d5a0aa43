from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.unit.trainer.conftest import SHAPES
from trainscope.errors import DataError, ModelError
from trainscope.trainer.data.images import find_samples, load_image
from trainscope.trainer.data.latents import encode_captions, encode_images
from trainscope.trainer.data.masks import find_masks, load_mask, random_mask
from trainscope.trainer.models.load import Components

Pictures = Callable[..., Path]


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
    loaded = load_mask(found[0], samples[0], 64)
    assert loaded.shape == (1, 64, 64)
    assert not loaded[..., :32].any()
    assert loaded[..., 32:].all()


def test_grey_edges_become_binary(pictures: Pictures, tmp_path: Path) -> None:
    samples = find_samples(pictures("a.png", size=(64, 64)))
    masks = tmp_path / "masks"
    masks.mkdir()
    Image.linear_gradient("L").save(masks / "a.png")
    assert set(load_mask(masks / "a.png", samples[0], 64).flatten().tolist()) == {0.0, 1.0}


def test_missing_masks_are_named(pictures: Pictures, tmp_path: Path) -> None:
    samples = find_samples(pictures("a.png", "b.png"))
    masks = tmp_path / "masks"
    with pytest.raises(DataError, match="does not exist"):
        find_masks(masks, samples)
    masks.mkdir()
    Image.new("L", (8, 8)).save(masks / "a.png")
    with pytest.raises(DataError, match=r"1 of 2 pictures have no mask in .*: b\.png"):
        find_masks(masks, samples)


def test_a_mask_that_does_not_decode_is_named(pictures: Pictures, tmp_path: Path) -> None:
    samples = find_samples(pictures("a.png"))
    (tmp_path / "a.png").write_bytes(b"no mask")
    with pytest.raises(DataError, match=r"the mask .*a\.png cannot be read"):
        load_mask(tmp_path / "a.png", samples[0], 64)


def test_latents_do_not_depend_on_the_batch(sd15: Components) -> None:
    images = [load_image(sample, 64) for sample in find_samples(SHAPES)[:5]]
    state = torch.get_rng_state()
    latents = encode_images(sd15.vae, iter(images), batch=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert latents.shape == (5, 4, 8, 8)
    assert not latents.requires_grad
    assert torch.allclose(latents, encode_images(sd15.vae, images, batch=5), atol=1e-4)
    first = sd15.vae.encode(images[0][None]).latent_dist.mean * sd15.vae.config.scaling_factor
    assert torch.allclose(latents[:1], first, atol=1e-4)


def test_no_pictures_have_no_latents(sd15: Components) -> None:
    assert len(encode_images(sd15.vae, [])) == 0


def test_latents_that_are_not_finite_are_an_error(sd15: Components) -> None:
    with pytest.raises(ModelError, match="non-finite latents in float32"):
        encode_images(sd15.vae, [torch.full((3, 64, 64), float("nan"))])


def test_captions_are_encoded_as_the_pipeline_does(sd15: Components, capfd: pytest.CaptureFixture[str]) -> None:
    long = " ".join(["red circle"] * 50)
    captions = ["a red circle", "", long, "a red circle"]
    encoded = encode_captions(sd15.tokenizer, sd15.text_encoder, captions, batch=2)
    assert encoded.embeddings.shape == (4, 77, 32)
    assert encoded.tokens == [3, 0, 100, 3]
    assert encoded.truncated == [0, 0, 25, 0]
    assert torch.equal(encoded.embeddings[0], encoded.embeddings[3])
    assert torch.equal(encoded.embeddings[1], encoded.empty)
    assert capfd.readouterr() == ("", "")
    from diffusers import StableDiffusionPipeline

    from trainscope.trainer.models.quiet import quiet_libraries

    with quiet_libraries(), torch.no_grad():
        pipeline = StableDiffusionPipeline(
            vae=sd15.vae, text_encoder=sd15.text_encoder, tokenizer=sd15.tokenizer, unet=sd15.unet,
            scheduler=sd15.noise_scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip
        for caption, embedding in zip(captions, encoded.embeddings, strict=True):
            theirs, _ = pipeline.encode_prompt(caption, "cpu", 1, False)
            assert torch.allclose(theirs[0], embedding, atol=1e-5)
