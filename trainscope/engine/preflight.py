"""The tables that are known before a training: its configuration, what follows from it, the files that it names.

Opens images and weight files only as far as their headers need, and never imports torch. What it cannot know stays
empty, so that the rules that would need it say *not observable*.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from trainscope.config.load import ResolvedConfig
from trainscope.config.plan import plan_run
from trainscope.engine.tables import TableSource, from_rows, key_value_rows
from trainscope.errors import DataError

IMAGE_ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
PREFLIGHT_SAMPLE = 4096
"""Elements of each tensor that its magnitude is estimated from."""


def preflight_source(resolved: ResolvedConfig) -> TableSource:
    """The tables of a training that has not begun. Raises `DataError` if there is no data to plan with."""
    config = resolved.config
    images = _images(resolved.resolve_path(config.data.dir))
    held_out = min(max(1, round(len(images) * config.data.validation_split)), len(images) - 1)
    train = len(images) - (held_out if config.data.validation_split else 0)
    values = {key: _plain(value) for key, value, _ in resolved.rows()}
    values.update(plan_run(config, train).keys())
    return from_rows(
        {
            "config": key_value_rows(values, "file"),
            "params": list(_params(resolved.resolve_path(config.model.base))),
            "data": [{"sample": number, "path": image.name} for number, image in enumerate(images)],
        }
    )


def _images(folder: Path) -> list[Path]:
    try:
        images = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_ENDINGS)
    except OSError as error:
        raise DataError(f"data.dir = {folder}: {error.strerror}", hint="name a folder of images") from error
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
