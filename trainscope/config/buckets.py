"""Aspect-ratio buckets: the sizes that pictures are trained at, and which of them a picture belongs to.

Plain arithmetic, which the plan and the trainer share. Knows nothing of files, pictures or torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from trainscope.config.data import DataSection

Size = tuple[int, int]
"""Width and height in px."""


def bucket_sizes(section: DataSection) -> list[Size]:
    """The sizes that pictures are trained at, sorted: one square without buckets.

    With buckets, every width that is a multiple of `step` has the largest height whose area is at most `resolution`²,
    sides between `min` and `max`; and the same turned; and the largest square. After NovelAI's aspect-ratio bucketing
    (2022) as kohya's `make_bucket_resolutions` does it. Not empty for a section without impossible combinations.
    """
    resolution, buckets = section.resolution, section.buckets
    if not buckets.enabled:
        return [(resolution, resolution)]
    step = buckets.step
    square = resolution // step * step
    sizes = {(square, square)}
    for side in range(buckets.min, buckets.max + 1, step):
        other = min(buckets.max, resolution**2 // side // step * step)
        if other >= buckets.min:
            sizes |= {(side, other), (other, side)}
    return sorted(sizes)


def nearest_bucket(size: Size, buckets: Iterable[Size]) -> Size:
    """The bucket whose width:height is nearest to that of `size`, as a ratio of ratios; of equal ones the largest.

    Ratios of ratios treat a picture and the same one turned alike; differences of ratios would not.
    """
    wanted = math.log(size[0] / size[1])
    # Rounded, so that 3:1 of two buckets ties, whatever the last bit of a logarithm says.
    return min(
        buckets, key=lambda bucket: (round(abs(math.log(bucket[0] / bucket[1]) - wanted), 9), -math.prod(bucket))
    )


def batches_per_epoch(counts: Iterable[int], batch_size: int, *, repeats: int = 1) -> int:
    """Batches of an epoch over buckets with so many samples each: no batch has two shapes, so each may end short."""
    return sum(math.ceil(count * repeats / batch_size) for count in counts)
