"""The size of a picture from the first bytes of its file, and its caption counted, without decoding or tokenizing.

Preflight looks at thousands of files before anything is installed that could decode them. What is not recognised has no
size. Knows nothing of rules or tables.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import BinaryIO

Size = tuple[int, int]
"""Width and height in px, as displayed."""

_TURNED = (5, 6, 7, 8)
"""EXIF orientations that exchange width and height."""
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
"""JPEG's markers of a frame (SOF): its header has the size."""
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xDA)} - {0xD9}
"""JPEG's markers that nothing follows."""


def picture_size(path: Path) -> Size | None:
    """Width and height of a PNG, JPEG, WebP or BMP; None where the file is none of them or damaged."""
    try:
        with path.open("rb") as file:
            start = file.read(32)
            if start.startswith(b"\x89PNG\r\n\x1a\n"):
                return _checked(*struct.unpack(">II", start[16:24]))
            if start.startswith(b"\xff\xd8"):
                return _jpeg(file)
            if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
                return _webp(start)
            if start.startswith(b"BM"):
                width, height = struct.unpack("<ii", start[18:26])
                return _checked(width, abs(height))  # a negative height says that its rows begin at the top
    except (OSError, struct.error, IndexError):
        pass
    return None


def _checked(width: int, height: int) -> Size | None:
    return (width, height) if width > 0 and height > 0 else None


def _webp(start: bytes) -> Size | None:
    kind, body = start[12:16], start[20:]
    if kind == b"VP8X":
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        width, height = struct.unpack("<HH", body[6:10])
        return _checked(width & 0x3FFF, height & 0x3FFF)
    return None


def _jpeg(file: BinaryIO) -> Size | None:
    """Go from segment to segment up to the frame; an EXIF segment before it may turn the picture."""
    file.seek(2)
    turned = False
    while True:
        marker = file.read(2)
        while len(marker) == 2 and marker[1] == 0xFF:  # fill bytes
            marker = marker[1:] + file.read(1)
        if len(marker) < 2 or marker[0] != 0xFF or marker[1] in (0xD9, 0xDA):
            return None
        if marker[1] in _WITHOUT_LENGTH:
            continue
        (length,) = struct.unpack(">H", file.read(2))
        if marker[1] in _FRAMES:
            height, width = struct.unpack(">xHH", file.read(5))
            return _checked(height, width) if turned else _checked(width, height)
        body = file.read(length - 2)
        if marker[1] == 0xE1 and body.startswith(b"Exif\0\0"):
            turned = _orientation(body[6:]) in _TURNED


def _orientation(tiff: bytes) -> int | None:
    """The orientation that EXIF's first directory names (tag 0x0112)."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return None
    try:
        (start,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, value = struct.unpack_from(f"{order}H6xH", tiff, entry)
            if tag == 0x0112:
                return int(value)
    except struct.error:
        pass
    return None


_PIECES = re.compile(r"'(?:s|t|re|ve|m|ll|d)|[^\W\d_]+|\d|(?:[^\w\s]|_)+", re.IGNORECASE)
"""CLIP's tokenizer splits a caption so before it looks for known pieces of words."""
_EMPHASIS = re.compile(r"(?<!\\)(?::\s*[+-]?[\d.]+\s*\)|[()\[\]])")


def least_tokens(caption: str, *, weighted: bool = False) -> int:
    """The fewest tokens that CLIP's tokenizer makes of a caption: one for each word, digit and run of other signs.

    The real number, which takes the tokenizer's files, is the same or larger: rare words have several. With `weighted`,
    the signs of emphasis do not count.
    """
    return len(_PIECES.findall(_EMPHASIS.sub(" ", caption) if weighted else caption))


def count_tags(caption: str, *, weighted: bool = False) -> int:
    """The comma-separated tags of a caption; with `weighted`, what is emphasised together is one."""
    depth, tags, is_empty = 0, 0, True
    for sign in caption:
        if weighted:
            depth = max(0, depth + (sign in "([") - (sign in ")]"))
        if sign == "," and not depth:
            tags, is_empty = tags + (not is_empty), True
        elif not sign.isspace():
            is_empty = False
    return tags + (not is_empty)
