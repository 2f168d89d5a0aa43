from __future__ import annotations

import random
from pathlib import Path

import pytest
from PIL import Image, ImageOps

from trainscope.engine.pictures import count_tags, least_tokens, picture_size

SIZES = [(1, 1), (8, 300), (513, 77), (1024, 640), (255, 256)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.png", {}),
        ("a.bmp", {}),
        ("a.jpg", {}),
        ("a.jpeg", {"progressive": True, "comment": b"\xff\xc0 is no frame here"}),
        ("a.webp", {}),
        ("a.webp", {"lossless": True}),
        ("a.webp", {"exif": b"Exif\0\0II*\0\x08\0\0\0\0\0"}),
    ],
    ids=["png", "bmp", "jpeg", "progressive", "webp", "webp-lossless", "webp-extended"],
)
def test_the_size_is_pillows(size: tuple[int, int], name: str, options: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / name
    Image.new("RGB", size, (200, 30, 90)).save(path, **options)
    assert picture_size(path) == size


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", ["little", "big"])
def test_a_turned_photograph_has_the_size_that_is_shown(orientation: int, order: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    exif = Image.Exif()
    exif.endian = "<" if order == "little" else ">"
    exif[0x010F] = "a camera"
    exif[0x0112] = orientation
    Image.new("RGB", (60, 20)).save(path, exif=exif)
    with Image.open(path) as image:
        shown = ImageOps.exif_transpose(image).size
    assert picture_size(path) == shown == ((60, 20) if orientation < 5 else (20, 60))


def test_what_is_no_picture_has_no_size(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    assert picture_size(path) is None
    for content in (b"", b"text", b"\x89PNG\r\n\x1a\n", b"\xff\xd8", b"\xff\xd8\xff\xe0\0", b"BM", b"RIFF0000WEBPVP8 "):
        path.write_bytes(content)
        assert picture_size(path) is None
    for name in ("a.jpg", "a.png", "a.webp", "a.bmp"):
        Image.new("RGB", (9, 9)).save(tmp_path / name)
        whole = (tmp_path / name).read_bytes()
        rng = random.Random(0)
        for length in range(0, len(whole), 7):
            damaged = bytearray(whole[:length])
            if damaged:
                damaged[rng.randrange(len(damaged))] ^= 0xFF
            path.write_bytes(bytes(damaged))
            picture_size(path)  # raises nothing, and ends


@pytest.mark.parametrize(
    ("caption", "weighted", "least"),
    [
        ("", False, 0),
        ("a red circle on a white background", False, 7),
        ("1girl, solo", False, 4),  # CLIP has a token for each digit
        ("it's 2026!!!", False, 7),
        ("snake_case", False, 3),
        ("(red circle:1.2), [blue]", True, 4),
        ("(red circle:1.2), [blue]", False, 11),
        (r"\(sic\)", True, 3),
    ],
)
def test_the_fewest_tokens(caption: str, weighted: bool, least: int) -> None:
    assert least_tokens(caption, weighted=weighted) == least


@pytest.mark.parametrize(
    ("caption", "weighted", "tags"),
    [
        ("", False, 0),
        (" , ,", False, 0),
        ("a cat", False, 1),
        ("a, b,, c ,", False, 3),
        ("(a, b:1.2), c", False, 3),
        ("(a, b:1.2), c", True, 2),
        ("a), b", True, 2),
    ],
)
def test_tags(caption: str, weighted: bool, tags: int) -> None:
    assert count_tags(caption, weighted=weighted) == tags
