"""Masks for inpainting: drawn at random, or read from a folder. 1 is where the model shall paint, 0 is kept.

Always exactly binary: a resized mask with grey edges would tell the model a half-truth about what it may see. Knows
nothing of latents or of models.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from trainscope.errors import DataError
from trainscope.trainer.data.framing import Frame
from trainscope.trainer.data.images import EXTENSIONS, UNDECODABLE, Sample, reason, to_rgb


def random_mask(
    height: int, width: int, *, generator: torch.Generator, min_side: float = 0.25, max_side: float = 0.75
) -> Tensor:
    """Draw a rectangle or an ellipse, each half of the time: float32 [1, height, width] in {0, 1}.

    Its sides are uniform between `min_side` and `max_side` of the picture's, its place uniform inside the picture. At
    least one pixel is masked. After diffusers' train_dreambooth_inpaint.py, which draws the same two shapes.
    """
    shape, tall, wide, down, right = torch.rand(5, generator=generator).tolist()
    half_height = max(1.0, height * (min_side + (max_side - min_side) * tall)) / 2
    half_width = max(1.0, width * (min_side + (max_side - min_side) * wide)) / 2
    centre_y = half_height + down * (height - 2 * half_height)
    centre_x = half_width + right * (width - 2 * half_width)
    y = ((torch.arange(height) + 0.5 - centre_y) / half_height)[:, None]
    x = ((torch.arange(width) + 0.5 - centre_x) / half_width)[None, :]
    inside = (y.abs() <= 1) & (x.abs() <= 1) if shape < 0.5 else y.square() + x.square() <= 1
    mask: Tensor = inside.float()
    mask[min(height - 1, int(centre_y)), min(width - 1, int(centre_x))] = 1  # a thin ellipse may miss every centre
    return mask.unsqueeze(0)


def find_masks(folder: Path, samples: Sequence[Sample]) -> dict[int, Path]:
    """Find the mask of each used sample, the picture of the same stem in `folder`: sample index to path.

    Raises `DataError`: no such folder, samples without a mask, or masks that cannot be decoded (up to 5 are named).
    """
    if not folder.is_dir():
        problem = "is a file" if folder.exists() else "does not exist"
        raise DataError(f"the mask folder {folder} {problem}", hint="data.mask_dir is relative to the configuration")
    by_stem = {
        path.stem: path
        for path in sorted(folder.iterdir(), reverse=True)
        if path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")
    }
    used = [sample for sample in samples if sample.dropped is None]
    missing = [sample.path.name for sample in used if sample.path.stem not in by_stem]
    if missing:
        names = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise DataError(
            f"{len(missing)} of {len(used)} pictures have no mask in {folder}: {names}",
            hint="a mask is a picture of the same name, white where the model shall paint",
        )
    broken = [problem for sample in used if (problem := _problem_of(by_stem[sample.path.stem]))]
    if broken:
        more = f"\n  … and {len(broken) - 5} more" if len(broken) > 5 else ""
        raise DataError(
            f"{len(broken)} of {len(used)} masks in {folder} cannot be read:\n  " + "\n  ".join(broken[:5]) + more,
            hint="save them again as PNG",
        )
    return {sample.index: by_stem[sample.path.stem] for sample in used}


def _problem_of(path: Path) -> str:
    """Why a mask cannot be used; found now, and not in the middle of the training."""
    try:
        _decode(path)
    except UNDECODABLE as error:
        return f"{path.name}: {reason(error)}"
    return ""


def load_mask(path: Path, frame: Frame) -> Tensor:
    """Load a mask and cut it like its picture: float32 [1, h, w] in {0, 1}, 1 where it is light.

    Resized with the nearest neighbour, so that it stays binary; transparent is 0. Raises `DataError` when it cannot be
    decoded.
    """
    try:
        layer = _decode(path)
    except UNDECODABLE as error:
        raise DataError(f"the mask {path} cannot be read: {reason(error)}", hint="save it again as PNG") from error
    black = Image.new("RGBA", layer.size, "black")
    grey = frame.cut(Image.alpha_composite(black, layer).convert("L"), Image.Resampling.NEAREST)
    return torch.from_numpy((np.asarray(grey) >= 128).astype(np.float32))[None]


def _decode(path: Path) -> Image.Image:
    """RGBA, upright. Raises one of `UNDECODABLE`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(path) as opened:
            upright = ImageOps.exif_transpose(opened)
            return (to_rgb(upright) if upright.mode.startswith("I") else upright).convert("RGBA")
