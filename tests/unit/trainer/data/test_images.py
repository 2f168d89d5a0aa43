from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.unit.trainer.conftest import SHAPES
from trainscope.errors import DataError
from trainscope.trainer.data.framing import Frame, centre_frame
from trainscope.trainer.data.images import Sample, difference_hash, find_samples, load_image, to_rgb

Pictures = Callable[..., Path]


def square(sample: Sample, side: int) -> Frame:
    return centre_frame((sample.width, sample.height), (side, side))


def _refusal(folder: Path, **arguments: object) -> DataError:
    with pytest.raises(DataError) as caught:
        find_samples(folder, **arguments)  # type: ignore[arg-type]
    return caught.value


def test_the_example_pictures_are_found() -> None:
    samples = find_samples(SHAPES)
    assert [sample.index for sample in samples] == list(range(28))
    assert [sample.path.name for sample in samples] == sorted(path.name for path in SHAPES.glob("*.png"))
    assert samples[0].caption == "a red circle on a yellow background"
    assert samples[0].digest == hashlib.sha256(samples[0].path.read_bytes()).hexdigest()
    assert all(48 <= side <= 112 for sample in samples for side in (sample.width, sample.height))
    assert len({sample.phash for sample in samples}) > 20
    assert all(len(sample.phash) == 16 and int(sample.phash, 16) >= 0 for sample in samples)
    assert all(sample.dropped is None for sample in samples)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".webp", ".bmp", ".PNG"])
def test_formats(pictures: Pictures, suffix: str) -> None:
    sample = find_samples(pictures(f"a{suffix}"))[0]
    assert (sample.width, sample.height, sample.caption) == (24, 16, f"caption of a{suffix}")


def test_other_files_are_left_alone(pictures: Pictures) -> None:
    folder = pictures("a.png")
    (folder / "notes.md").write_text("no picture")
    (folder / "._a.png").write_bytes(b"what macOS leaves on other disks")
    (folder / "b.png").mkdir()
    assert len(find_samples(folder)) == 1


@pytest.mark.parametrize("extension", [".caption", "caption"])
def test_captions_have_the_extension_asked_for(pictures: Pictures, extension: str) -> None:
    folder = pictures("a.png")
    (folder / "a.caption").write_text("\ufeff a  cat,\n sitting ", encoding="utf-8")
    assert find_samples(folder, caption_extension=extension)[0].caption == "a cat, sitting"


def test_no_captions_at_all_are_empty_and_told(pictures: Pictures) -> None:
    told: list[str] = []
    samples = find_samples(pictures("a.png", "b.png", captions=False), warn=told.append)
    assert [sample.caption for sample in samples] == ["", ""]
    assert len(told) == 1
    assert "all captions are empty" in told[0]


def test_some_missing_captions_are_an_error_naming_five(pictures: Pictures) -> None:
    folder = pictures(*(f"{number}.png" for number in range(9)))
    for number in range(1, 8):
        (folder / f"{number}.txt").unlink()
    message = str(_refusal(folder))
    assert "7 pictures of 9" in message
    assert "1.txt" in message
    assert "5.txt" in message
    assert "6.txt" not in message
    assert "and 2 more" in message


def test_an_empty_caption_is_a_caption(pictures: Pictures) -> None:
    folder = pictures("a.png", "b.png")
    (folder / "a.txt").write_text("")
    assert [sample.caption for sample in find_samples(folder)] == ["", "caption of b.png"]


def test_captions_in_another_encoding_are_named(pictures: Pictures) -> None:
    folder = pictures("a.png", "b.png")
    (folder / "b.txt").write_bytes("ein Bär".encode("latin-1"))
    error = _refusal(folder)
    assert "b.txt: byte 5 is not UTF-8" in str(error)
    assert error.hint == "save the captions as UTF-8 text"


def test_shared_stems_are_an_error(pictures: Pictures) -> None:
    assert "a.jpg and a.png" in str(_refusal(pictures("a.png", "a.jpg", "b.png")))


def test_folders_that_cannot_be_meant(tmp_path: Path) -> None:
    assert "there is no folder" in str(_refusal(tmp_path / "none"))
    (tmp_path / "file").write_text("")
    assert "is a file" in str(_refusal(tmp_path / "file"))
    (tmp_path / "empty" / "10_cats").mkdir(parents=True)
    error = _refusal(tmp_path / "empty")
    assert "no pictures" in str(error)
    assert error.hint is not None
    assert "10_cats" in error.hint


def _damage(folder: Path) -> None:
    """Four pictures that cannot be used, beside those that can."""
    good = (SHAPES / "00-red-circle.png").read_bytes()
    (folder / "cut.png").write_bytes(good[: len(good) * 2 // 3])
    Image.effect_noise((64, 64), 80).convert("RGB").save(folder / "cut2.jpg")
    data = (folder / "cut2.jpg").read_bytes()
    (folder / "cut2.jpg").write_bytes(data[: len(data) // 2])
    (folder / "text.png").write_text("I am no picture")
    (folder / "zero.webp").write_bytes(b"")
    Image.new("RGB", (4000, 2)).save(folder / "thin.png")


def test_all_that_do_not_decode_are_told_at_once(pictures: Pictures) -> None:
    folder = pictures("good.png", captions=False)
    _damage(folder)
    message = str(_refusal(folder))
    assert "5 pictures of 6" in message
    assert "cut.png: truncated" in message
    assert "cut2.jpg: truncated" in message
    assert "text.png: not a picture" in message
    assert "zero.webp: not a picture" in message
    assert "thin.png: 4000x2 px is too small" in message
    assert "BytesIO" not in message  # Pillow's own words name Python objects


def test_those_that_do_not_decode_can_be_left_out(pictures: Pictures) -> None:
    folder = pictures("good.png")
    _damage(folder)
    told: list[str] = []
    samples = find_samples(folder, on_corrupt="skip", warn=told.append)
    assert [sample.path.name for sample in samples if sample.dropped is None] == ["good.png"]
    assert len(samples) == 6
    assert [sample.index for sample in samples] == list(range(6))
    assert len(told) == 5
    assert all(sample.digest for sample in samples)


def test_nothing_left_is_an_error_all_the_same(pictures: Pictures) -> None:
    folder = pictures()
    (folder / "a.png").write_bytes(b"")
    assert "1 picture of 1" in str(_refusal(folder, on_corrupt="skip"))


def test_bombs_are_refused_without_decoding(pictures: Pictures, recwarn: pytest.WarningsRecorder) -> None:
    folder = pictures("good.png")
    for name, side in (("huge", 12_000), ("bomb", 20_000)):
        Image.new("1", (side, side)).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text("large")
    message = str(_refusal(folder))
    assert "huge.png: 12000x12000 px is more than 100 megapixels" in message
    assert "bomb.png: more than 100 megapixels" in message
    assert not recwarn.list


def test_exif_orientation_is_applied(pictures: Pictures) -> None:
    folder = pictures()
    image = Image.new("RGB", (40, 20), "black")
    image.paste("white", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees
    image.save(folder / "a.png", exif=exif)
    sample = find_samples(folder)[0]
    assert (sample.width, sample.height) == (20, 40)
    tensor = load_image(sample, square(sample, 20))
    assert float(tensor[:, :9].min()) > 0.9  # the left half is on top now
    assert float(tensor[:, 11:].max()) < -0.9


def test_transparency_goes_onto_white() -> None:
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert to_rgb(clear).getpixel((0, 0)) == (255, 255, 255)
    assert to_rgb(Image.new("LA", (8, 8), (0, 128))).getpixel((0, 0)) == (127, 127, 127)
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([0, 0, 255, 0, 255, 0])
    palette.info["transparency"] = 0
    assert to_rgb(palette).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(pictures: Pictures, mode: str) -> None:
    folder = pictures()
    values = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    image = Image.fromarray(values) if mode == "I;16" else Image.new("RGB", (16, 16), "white").convert(mode)
    name = "a.jpg" if mode == "CMYK" else "a.png"
    image.save(folder / name)
    sample = find_samples(folder)[0]
    tensor = load_image(sample, square(sample, 16))
    assert tensor.shape == (3, 16, 16)
    if mode == "I;16":
        assert float((tensor[0] - torch.linspace(-1, 1, 256).reshape(16, 16)).abs().max()) < 0.01
    else:
        assert float(tensor.min()) > 0.95


@pytest.mark.parametrize("size", [(48, 112), (112, 48), (64, 64), (30, 200)])
def test_tensors_are_square_crops_of_the_middle(pictures: Pictures, size: tuple[int, int]) -> None:
    folder = pictures()
    image = Image.new("RGB", size, "black")
    image.paste("white", (size[0] // 2 - 8, size[1] // 2 - 8, size[0] // 2 + 8, size[1] // 2 + 8))
    image.save(folder / "a.png")
    sample = find_samples(folder)[0]
    tensor = load_image(sample, square(sample, 64))
    assert tensor.shape == (3, 64, 64)
    assert tensor.dtype == torch.float32
    assert tensor.is_contiguous()
    assert -1 <= float(tensor.min()) < float(tensor.max()) <= 1
    rows = (tensor[0] > 0).float()
    centre = (rows.sum(0) * torch.arange(64)).sum() / rows.sum()
    assert abs(float(centre) - 31.5) <= 1


def test_a_picture_that_went_away_or_changed_is_an_error(pictures: Pictures) -> None:
    sample = find_samples(pictures("a.png"))[0]
    Image.new("RGB", (24, 16), "white").save(sample.path)
    with pytest.raises(DataError, match="cannot be read any more: its content changed"):
        load_image(sample, square(sample, 16))
    sample.path.unlink()
    with pytest.raises(DataError, match="cannot be read any more"):
        load_image(sample, square(sample, 16))


def test_alike_pictures_have_alike_hashes() -> None:
    pictures = [Image.open(path) for path in sorted(SHAPES.glob("*.png"))[:2]]

    def distance(a: Image.Image, b: Image.Image) -> int:
        return (int(difference_hash(a), 16) ^ int(difference_hash(b), 16)).bit_count()

    smaller = pictures[0].resize((40, 20))
    assert distance(pictures[0], smaller) <= 6 < distance(pictures[0], pictures[1])
