"""Sample images as data URIs: only files inside the run directory, only images, only up to a budget.

Where the files are too large for it, small copies of them are embedded instead if Pillow is installed, as it is where
trainscope trains; auditing does without.
The paths come from report.json and are not trusted. Must not know how the page shows an image.
"""

from __future__ import annotations

import base64
import io
import stat
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from urllib.parse import quote

_KINDS = ((b"\x89PNG\r\n\x1a\n", "image/png"), (b"\xff\xd8\xff", "image/jpeg"), (b"GIF8", "image/gif"))

SMALL = 256
"""Longer side of a small copy in px: twice what the contact sheet shows, for screens with fine pixels."""
MOST_PIXELS = 4096 * 4096
"""Of a file to be made smaller: more is no sample, and may be made to exhaust the memory."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF")


@dataclass(frozen=True)
class Image:
    """An image of the contact sheet: a data URI, or a note that says why there is none.

    `href` is the file relative to the report, where it exists but is not embedded, or only a small copy of it.
    """

    data_uri: str = ""
    note: str = ""
    href: str = ""


def embed(samples: Sequence[dict[str, Any]], run_dir: Path, budget: int) -> list[Image]:
    """Return an image for each sample. Where not all fit: each prompt's last, then its first, then the others."""
    images: list[Image | None] = [None] * len(samples)
    sizes: dict[int, tuple[Path, int]] = {}
    for index, sample in enumerate(samples):
        path = str(sample.get("path", ""))
        file = inside(run_dir, path)
        if file is None:
            images[index] = Image(note=f"refused: {path} is outside the run")
        elif (size := _size(file)) is None:
            images[index] = Image(note=f"missing: {path}")
        else:
            sizes[index] = (file, size)
    too_much = sum(size for _, size in sizes.values()) > budget
    for index in _by_importance(samples, list(sizes)):
        file, size = sizes[index]
        path = str(samples[index]["path"])
        if too_much and (small := _small_copy(file)) is not None and len(small) <= budget:
            images[index] = Image(data_uri=_data_uri("image/jpeg", small), href="./" + quote(path))
            budget -= len(small)
            continue
        if size > budget:
            images[index] = Image(note=f"not embedded: {path}", href="./" + quote(path))
            continue
        images[index] = _load(file, path)
        budget -= size
    return [image or Image(note="missing") for image in images]


def inside(run_dir: Path, path: str) -> Path | None:
    """Return the file that a sample names, or None where it is absolute or leads out of the run directory."""
    pure = PurePosixPath(path)
    windows = PureWindowsPath(path)
    if not path or "\0" in path or pure.is_absolute() or windows.drive or windows.root:
        return None
    if ".." in pure.parts or ".." in windows.parts:
        return None
    try:
        root = run_dir.resolve()
        file = (root / path).resolve()
    except (OSError, RuntimeError, ValueError):  # a loop of links, a name that no file can have
        return None
    return file if file.is_relative_to(root) else None


def _size(file: Path) -> int | None:
    try:
        found = file.stat()
    except (OSError, ValueError):
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def _load(file: Path, path: str) -> Image:
    try:
        content = file.read_bytes()
    except OSError:
        return Image(note=f"missing: {path}")
    kind = next((kind for magic, kind in _KINDS if content.startswith(magic)), "")
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        kind = "image/webp"
    if not kind:
        return Image(note=f"not an image: {path}")
    return Image(data_uri=_data_uri(kind, content))


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _small_copy(file: Path) -> bytes | None:
    """The picture with its longer side at most SMALL px, as JPEG; None where it is that small, or cannot be read."""
    try:
        from PIL import Image as Pillow

        with warnings.catch_warnings(action="ignore"), Pillow.open(file, formats=FORMATS) as picture:
            if max(picture.size) <= SMALL or picture.width * picture.height > MOST_PIXELS:
                return None
            small = picture.convert("RGB")
    except Exception:  # no Pillow, a file that is damaged or no picture: it is shown as it is, or not at all
        return None
    small.thumbnail((SMALL, SMALL))
    written = io.BytesIO()
    small.save(written, "JPEG", quality=85)
    return written.getvalue()


def _by_importance(samples: Sequence[dict[str, Any]], indices: list[int]) -> list[int]:
    rows: dict[tuple[str, str, str], list[int]] = {}
    for index in indices:
        sample = samples[index]
        row = (str(sample.get("prompt")), str(sample.get("seed")), str(sample.get("weights")))
        rows.setdefault(row, []).append(index)
    for row_indices in rows.values():
        row_indices.sort(key=lambda index: samples[index].get("step") or 0)
    lasts = [row[-1] for row in rows.values()]
    firsts = [row[0] for row in rows.values() if len(row) > 1]
    return list(dict.fromkeys([*lasts, *firsts, *indices]))
