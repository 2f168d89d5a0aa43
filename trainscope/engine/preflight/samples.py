"""The pictures and captions of a plan: their sizes, their buckets, the tokens of their captions.

Opens a picture as far as its header. Knows nothing of weights or rules.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from trainscope.config.buckets import Size, bucket_sizes, nearest_bucket
from trainscope.config.data import DataSection
from trainscope.engine.pictures import count_tags, least_tokens, picture_size
from trainscope.errors import DataError

IMAGE_ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})


@dataclass(frozen=True)
class Pictures:
    """The pictures of a folder, in the order of their names, with captions, and sizes where these can be read."""

    section: DataSection
    paths: Sequence[Path]
    sizes: Sequence[Size | None]
    captions: Sequence[str | None]
    """None where nobody wrote one."""

    @property
    def trained(self) -> int:
        """How many of them are trained on; the others are held out."""
        share, count = self.section.validation_split, len(self.paths)
        return count - min(max(1, round(count * share)), count - 1) if share else count

    @cached_property
    def by_bucket(self) -> dict[Size, int] | None:
        """How many pictures each bucket trains on; None where the sizes are not all known.

        Which ones are held out depends on what the files contain: here those of the fullest buckets are.
        """
        known = [size for size in self.sizes if size is not None]
        if len(known) < len(self.sizes):
            return None
        counts = Counter(self._bucket(size) for size in known)
        for _ in range(len(self.paths) - self.trained):
            counts[max(counts, key=lambda bucket: counts[bucket])] -= 1
        return {bucket: count for bucket, count in counts.items() if count}

    @property
    def counts(self) -> list[int] | None:
        """How many pictures each bucket trains on; None without buckets, or where the sizes are not all known."""
        if not self.section.buckets.enabled or self.by_bucket is None:
            return None
        return list(self.by_bucket.values())

    def largest_batch(self, batch_size: int) -> tuple[int, Size]:
        """The batch with the most pixels that `batch_size` comes to: how many pictures it has, and their size."""
        square = self.section.resolution
        buckets = self.by_bucket or {(square, square): self.trained}
        batches = [(min(batch_size, count * self.section.repeats), size) for size, count in buckets.items()]
        return max(batches, key=lambda batch: batch[0] * math.prod(batch[1]))

    def rows(self) -> Iterator[dict[str, Any]]:
        """The `data` table. Without the tokenizer tokens are counted by `least_tokens`: the fewest there can be."""
        section = self.section
        for number, (path, size) in enumerate(zip(self.paths, self.sizes, strict=True)):
            row: dict[str, Any] = {"sample": number, "path": path.name, "repeats": section.repeats}
            if size is not None:
                width, height = self._bucket(size)
                row.update(width=size[0], height=size[1], bucket=f"{width}x{height}")
            if (caption := self.captions[number]) is not None:
                tokens = least_tokens(caption, weighted=section.weighted_captions)
                tags = count_tags(caption, weighted=section.weighted_captions)
                row.update(tokens=tokens, truncated=max(0, tokens - section.max_tokens), tags=tags)
            yield row

    @cached_property
    def _nearest(self) -> dict[Size, Size]:
        return {}

    @cached_property
    def _buckets(self) -> list[Size]:
        return bucket_sizes(self.section)

    def _bucket(self, size: Size) -> Size:
        if size not in self._nearest:  # many pictures have the same size
            self._nearest[size] = nearest_bucket(size, self._buckets)
        return self._nearest[size]


def find_pictures(folder: Path, section: DataSection) -> Pictures:
    """The pictures of `data.dir`.

    Raises one `DataError` for all that the training is going to refuse and that shows without decoding: no pictures,
    empty ones, pictures that share a name, captions that are no UTF-8 or that only some have.
    """
    paths = [folder / name for name in _names(folder)]
    sizes = [picture_size(path) for path in paths]
    captions, problems = _read_captions(paths, section)
    stems = Counter(path.stem for path in paths)
    problems += [f"{stem}: {count} pictures share this name" for stem, count in stems.items() if count > 1]
    if section.on_corrupt == "fail":
        unread = [path for path, size in zip(paths, sizes, strict=True) if size is None]
        problems += [f"{path.name}: is empty" for path in unread if _is_empty(path)]
    if problems:
        more = [f"… and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        raise DataError(
            "\n".join(
                [f"data.dir = {folder}: cannot be trained on", *(f"  {line}" for line in problems[:SHOWN] + more)]
            ),
            hint="a picture has a name of its own, and a caption beside it in UTF-8 (or no picture has one)",
        )
    return Pictures(section, paths, sizes, captions)


SHOWN = 20
"""So many problems are told one by one."""


def _names(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            names = sorted(
                entry.name
                for entry in entries
                if not entry.name.startswith(".")
                and os.path.splitext(entry.name)[1].lower() in IMAGE_ENDINGS  # noqa: PTH122  100,000 of them
                and not entry.is_dir()
            )
    except OSError as error:
        raise DataError(f"data.dir = {folder}: {error.strerror}", hint="name a folder of images") from error
    if not names:
        raise DataError(
            f"data.dir = {folder}: no images in it", hint=f"images end in {', '.join(sorted(IMAGE_ENDINGS))}"
        )
    return names


def _read_captions(paths: Sequence[Path], section: DataSection) -> tuple[list[str | None], list[str]]:
    captions: list[str | None] = []
    problems: list[str] = []
    missing: list[str] = []
    for path in paths:
        file = path.with_suffix(section.caption_extension)
        caption: str | None = None
        try:
            caption = file.read_text(encoding="utf-8-sig")
        except FileNotFoundError:
            missing.append(file.name)
        except UnicodeDecodeError as error:
            problems.append(f"{file.name}: byte {error.start} is not UTF-8")
        except OSError as error:
            problems.append(f"{file.name}: {(error.strerror or 'cannot be opened').lower()}")
        captions.append(caption)
    # Of pictures that are left out no caption is read, and which these are shows only when they are decoded.
    if section.on_corrupt == "fail" and len(missing) < len(paths):
        problems += [f"{name}: is missing, and other pictures have a caption" for name in missing]
    return captions, problems if section.on_corrupt == "fail" else []


def _is_empty(path: Path) -> bool:
    try:
        return path.stat().st_size == 0
    except OSError:
        return False
