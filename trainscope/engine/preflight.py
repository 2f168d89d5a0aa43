"""The tables that are known before a training: its configuration, what follows from it, the files that it names.

Opens images and weight files only as far as their headers need, and never imports torch. What it cannot know stays
empty, so that the rules that would need it say *not observable*.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from trainscope.config.buckets import Size, bucket_sizes, nearest_bucket
from trainscope.config.data import DataSection
from trainscope.config.load import ResolvedConfig
from trainscope.config.plan import plan_run
from trainscope.engine.pictures import count_tags, least_tokens, picture_size
from trainscope.engine.tables import TableSource, from_rows, key_value_rows
from trainscope.errors import DataError

IMAGE_ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
PREFLIGHT_SAMPLE = 4096
"""Elements of each tensor that its magnitude is estimated from."""


def preflight_source(resolved: ResolvedConfig) -> TableSource:
    """The tables of a training that has not begun. Raises `DataError` if there is no data to plan with."""
    config = resolved.config
    images = _images(resolved.resolve_path(config.data.dir))
    sizes = [picture_size(image) for image in images]
    held_out = min(max(1, round(len(images) * config.data.validation_split)), len(images) - 1)
    train = len(images) - (held_out if config.data.validation_split else 0)
    values = {key: _plain(value) for key, value, _ in resolved.rows()}
    values.update(plan_run(config, train, buckets=_by_bucket(sizes, config.data, train)).keys())
    return from_rows(
        {
            "config": key_value_rows(values, "file"),
            "params": list(_params(resolved.resolve_path(config.model.base))),
            "data": list(_samples(images, sizes, config.data)),
        }
    )


def _by_bucket(sizes: list[Size | None], section: DataSection, train: int) -> list[int] | None:
    """How many pictures each bucket trains on; None where their sizes are not all known.

    Which ones are held out depends on what the files contain: here those of the fullest buckets are.
    """
    known = [size for size in sizes if size is not None]
    if not section.buckets.enabled or len(known) < len(sizes):
        return None
    buckets = bucket_sizes(section)
    counts = Counter(nearest_bucket(size, buckets) for size in known)
    for _ in range(len(sizes) - train):
        counts[max(counts, key=lambda bucket: counts[bucket])] -= 1
    return [count for count in counts.values() if count]


def _samples(images: list[Path], sizes: list[Size | None], section: DataSection) -> Iterator[dict[str, Any]]:
    """The `data` table. Without the tokenizer tokens are counted by `least_tokens`: the fewest that there can be."""
    buckets = bucket_sizes(section)
    for number, (image, size) in enumerate(zip(images, sizes, strict=True)):
        row: dict[str, Any] = {"sample": number, "path": image.name, "repeats": section.repeats}
        if size is not None:
            width, height = nearest_bucket(size, buckets)
            row.update(width=size[0], height=size[1], bucket=f"{width}x{height}")
        if (caption := _caption(image, section)) is not None:
            tokens = least_tokens(caption, weighted=section.weighted_captions)
            tags = count_tags(caption, weighted=section.weighted_captions)
            row.update(tokens=tokens, truncated=max(0, tokens - section.max_tokens), tags=tags)
        yield row


def _caption(image: Path, section: DataSection) -> str | None:
    try:
        return image.with_suffix(section.caption_extension).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        return None  # the training says what is wrong with it


def _images(folder: Path) -> list[Path]:
    try:
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise DataError(f"data.dir = {folder}: {error.strerror}", hint="name a folder of images") from error
    images = [path for path in paths if path.suffix.lower() in IMAGE_ENDINGS and not path.is_dir()]
    if not images:
        raise DataError(
            f"data.dir = {folder}: no images in it", hint=f"images end in {', '.join(sorted(IMAGE_ENDINGS))}"
        )
    return images


def _params(base: Path) -> Iterator[dict[str, Any]]:
    """The UNet's tensors from the header of its weight file, with their magnitudes; nothing if it is not at hand."""
    file = base / "unet" / "diffusion_pytorch_model.safetensors"
    if not file.is_file():
        return
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as weights:
            for name in weights.keys():  # noqa: SIM118  not a mapping
                view = weights.get_slice(name)
                yield {
                    "param": f"unet.{name}",
                    "name": name,
                    "component": "unet",
                    "module": f"unet.{name}".rpartition(".")[0],
                    "shape": json.dumps(list(view.get_shape())),
                    "dtype": view.get_dtype(),
                    "numel": int(np.prod(view.get_shape())),
                    **_magnitude(weights, name, view.get_dtype()),
                }
    except (OSError, SafetensorError) as error:
        raise DataError(f"{file} cannot be read: {error}", hint="download the model again") from error


def _magnitude(weights: Any, name: str, dtype: str) -> dict[str, float]:
    if dtype not in ("F32", "F16", "F64"):  # numpy has no bfloat16
        return {}
    values = np.abs(weights.get_tensor(name).reshape(-1).astype(np.float64))
    values = values[:: max(1, values.size // PREFLIGHT_SAMPLE)]
    if not values.size:
        return {}
    return {"weight_rms": float(np.sqrt(np.mean(values**2))), "weight_abs_median": float(np.median(values))}


def _plain(value: Any) -> Any:
    """Infinity has no JSON; the run's own table writes it as text."""
    return str(value) if isinstance(value, float) and not np.isfinite(value) else value
