"""Finds the training pictures with their captions, checks each by decoding it, and loads them as tensors.

A run that stops after an hour at a truncated file has wasted the hour, so everything is looked at before the first
step and all that is wrong is told at once. Knows nothing of models, batches or latents.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from trainscope.errors import DataError
from trainscope.trainer.data.framing import Frame

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
MIN_SIDE = 8
"""px. Below it a picture is less than one cell of the latent."""
MAX_PIXELS = 100_000_000
"""Larger than any camera's; decoded, it takes 300 MB. What claims more is a mistake or a decompression bomb."""


@dataclass(frozen=True)
class Sample:
    """A picture on disk. Sizes in px, as displayed (EXIF orientation applied); 0 where it could not be decoded.

    `digest` is the SHA-256 of the file, `phash` a 64-bit difference hash of the picture (both hexadecimal), `dropped`
    why it is not used, None = used.
    """

    index: int
    path: Path
    width: int
    height: int
    caption: str
    digest: str
    phash: str
    dropped: str | None = None


def find_samples(
    folder: Path,
    *,
    caption_extension: str = ".txt",
    on_corrupt: Literal["fail", "skip"] = "fail",
    warn: Callable[[str], None] = lambda message: None,
) -> list[Sample]:
    """Find the pictures in `folder` (not below it), sorted by name, and decode each of them once.

    The caption of `cat.png` is the text of `cat<caption_extension>`, UTF-8, its whitespace collapsed. When no picture
    has one, all captions are empty and `warn` is told so. With `on_corrupt` = "skip" a picture that does not decode
    is kept as a dropped sample, and `warn` gets one line about each; with "fail" they are an error together.

    Raises `DataError`: no such folder, no picture in it, pictures that share a stem, unreadable pictures, captions
    that are missing or not UTF-8.
    """
    paths = _list_pictures(folder)
    _refuse_shared_stems(paths)
    samples = [_inspect(index, path) for index, path in enumerate(paths)]
    dropped = [f"{sample.path.name}: {sample.dropped}" for sample in samples if sample.dropped is not None]
    if dropped and (on_corrupt == "fail" or len(dropped) == len(samples)):
        raise DataError(
            f"{_count(len(dropped), 'picture')} of {len(samples)} in {folder} cannot be used:\n"
            + _indent(dropped, shown=None),
            hint='replace or remove them, or set data.on_corrupt = "skip" to train without them',
        )
    for line in dropped:
        warn(f"left out {line}")
    extension = caption_extension if caption_extension.startswith(".") else f".{caption_extension}"
    captions = _read_captions([sample.path for sample in samples if sample.dropped is None], extension, folder, warn)
    return [replace(sample, caption=captions.get(sample.path, "")) for sample in samples]


def load_image(sample: Sample, frame: Frame) -> Tensor:
    """Load what is seen of a picture, resized by Lanczos' kernel, antialiased: float32 [3, h, w] in [-1, 1].

    Raises `DataError` when the file changed or went away.
    """
    try:
        data = sample.path.read_bytes()
        if hashlib.sha256(data).hexdigest() != sample.digest:
            raise ValueError("its content changed")
        image = _decode(data)
    except UNDECODABLE as error:
        raise DataError(
            f"{sample.path} cannot be read any more: {reason(error)}",
            hint="leave the data folder alone while a run uses it",
        ) from error
    pixels = np.asarray(frame.cut(image, Image.Resampling.LANCZOS), dtype=np.float32)
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous() / 127.5 - 1


def difference_hash(image: Image.Image) -> str:
    """64-bit difference hash, 16 hexadecimal digits: alike pictures differ in few bits (N. Krawetz 2013, "dHash")."""
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.LANCZOS), dtype=np.int16)
    bits = (grey[:, 1:] > grey[:, :-1]).flatten()
    return f"{int.from_bytes(np.packbits(bits).tobytes(), 'big'):016x}"


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to 8-bit RGB: transparency onto white, 16-bit grey scaled and not clipped."""
    if image.mode.startswith("I"):  # 16-bit PNG; 65535 = 255 * 257
        image = Image.fromarray((np.asarray(image, dtype=np.float64) / 257).clip(0, 255).round().astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image.convert("RGB")


UNDECODABLE = (
    OSError, SyntaxError, ValueError, EOFError, OverflowError, MemoryError, IndexError, KeyError, TypeError,
    Image.DecompressionBombError,
)  # fmt: skip
"""What Pillow raises on damaged files: its decoders are many, and each fails in its own way."""


def _decode(data: bytes) -> Image.Image:
    """Decode a file to RGB, upright. Raises one of `UNDECODABLE`, a ValueError where the size is out of bounds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of large sizes and odd EXIF; the sizes are checked here
        image = Image.open(io.BytesIO(data))
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ValueError(f"{width}x{height} px is more than {MAX_PIXELS // 1_000_000} megapixels")
        if min(width, height) < MIN_SIDE:
            raise ValueError(f"{width}x{height} px is too small, a side needs {MIN_SIDE} px")
        image.load()
        return to_rgb(ImageOps.exif_transpose(image))


def _inspect(index: int, path: Path) -> Sample:
    digest, phash, width, height = "", "", 0, 0
    try:
        data = path.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        image = _decode(data)
        width, height = image.size
        phash = difference_hash(image)
    except UNDECODABLE as error:
        return Sample(index, path, width, height, "", digest, phash, dropped=reason(error))
    return Sample(index, path, width, height, "", digest, phash)


def reason(error: BaseException) -> str:
    """One line for the user; Pillow's own text names memory addresses and Python types."""
    if isinstance(error, UnidentifiedImageError):
        return "not a picture, or its beginning is damaged"
    if isinstance(error, FileNotFoundError | PermissionError):
        return (error.strerror or "cannot be opened").lower()
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {MAX_PIXELS // 1_000_000} megapixels"
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"truncated ({text})" if "truncated" in text or "broken" in text else text


def _list_pictures(folder: Path) -> list[Path]:
    if not folder.exists():
        raise DataError(f"there is no folder {folder}", hint="data.dir is relative to the configuration file")
    if not folder.is_dir():
        raise DataError(f"{folder} is a file", hint="data.dir names the folder with the pictures in it")
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    pictures = [path for path in entries if path.suffix.lower() in EXTENSIONS and not path.is_dir()]
    if not pictures:
        below = [path.name for path in entries if path.is_dir()]
        raise DataError(
            f"there are no pictures in {folder} ({', '.join(EXTENSIONS)})",
            hint=f"pictures below it are not read; point data.dir at {below[0]} itself" if below else None,
        )
    return pictures


def _refuse_shared_stems(paths: list[Path]) -> None:
    """Two pictures of one stem would share a caption and a mask, and one of them got it by mistake."""
    by_stem: dict[str, list[str]] = {}
    for path in paths:
        by_stem.setdefault(path.stem, []).append(path.name)
    shared = [" and ".join(names) for names in by_stem.values() if len(names) > 1]
    if shared:
        raise DataError(
            f"pictures in {paths[0].parent} share a name, so that their captions cannot be told apart:\n"
            + _indent(shared),
            hint="rename or remove one of each",
        )


def _read_captions(paths: list[Path], extension: str, folder: Path, warn: Callable[[str], None]) -> dict[Path, str]:
    captions: dict[Path, str] = {}
    missing: list[str] = []
    unreadable: list[str] = []
    for path in paths:
        sidecar = path.with_suffix(extension)
        try:
            captions[path] = " ".join(sidecar.read_text(encoding="utf-8-sig").split())
        except FileNotFoundError:
            missing.append(sidecar.name)
        except UnicodeDecodeError as error:
            unreadable.append(f"{sidecar.name}: byte {error.start} is not UTF-8")
        except OSError as error:
            unreadable.append(f"{sidecar.name}: {(error.strerror or 'cannot be opened').lower()}")
    if unreadable:
        raise DataError(
            f"{_count(len(unreadable), 'caption')} in {folder} cannot be read:\n" + _indent(unreadable),
            hint="save the captions as UTF-8 text",
        )
    if not captions:
        warn(f"no picture in {folder} has a caption ({extension}); all captions are empty")
    elif missing:
        raise DataError(
            f"{_count(len(missing), 'picture')} of {len(paths)} in {folder} have no caption:\n" + _indent(missing),
            hint="write the missing files (an empty one is an empty caption), or remove all of them",
        )
    return captions


def _indent(lines: list[str], shown: int | None = 5) -> str:
    more = [f"… and {len(lines) - shown} more"] if shown is not None and len(lines) > shown else []
    return "\n".join(f"  {line}" for line in [*lines[:shown], *more])


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
