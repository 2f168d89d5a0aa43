"""What the frozen VAE makes of pictures, kept in memory and on disk, or computed at every visit.

Each picture is encoded by itself, since the last bits of a batch depend on its size: a latent is the same whether it
was cached, read from disk or encoded now. Knows nothing of training or noise.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from trainscope.trainer.data.cache import DiskCache
from trainscope.trainer.data.framing import Frame
from trainscope.trainer.data.images import Sample, load_image
from trainscope.trainer.data.visits import Visit
from trainscope.trainer.models.vae import vae_encode


class Latents:
    """The latents of the pictures. `kept` has those in memory by sample and frame: float32 [c, h/8, w/8] on the CPU."""

    def __init__(self) -> None:
        self.kept: dict[tuple[int, Frame], Tensor] = {}

    def keep(self, vae: Any, wanted: Iterable[tuple[Sample, Frame]], disk: DiskCache | None) -> None:
        """Encode pictures now, or read them from disk."""
        for sample, frame in wanted:
            if disk is None:
                latent = _encode(vae, sample, frame).cpu()
            else:
                latent = disk.get(
                    lambda sample=sample, frame=frame: {"latent": _encode(vae, sample, frame)},  # type: ignore[misc]
                    picture=sample.digest,
                    frame=asdict(frame),
                )["latent"]
            self.kept[sample.index, frame] = latent

    def of(self, vae: Any, visits: Iterable[Visit]) -> Tensor:
        """The latents of visits to pictures of one bucket, [b, c, h/8, w/8]: those kept, else encoded now."""
        found = []
        for visit in visits:
            kept = self.kept.get((visit.sample.index, visit.frame))
            found.append(_encode(vae, visit.sample, visit.frame) if kept is None else kept)
        return torch.stack(found)


def _encode(vae: Any, sample: Sample, frame: Frame) -> Tensor:
    return vae_encode(vae, load_image(sample, frame)[None])[0]
