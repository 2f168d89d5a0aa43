"""Latents and embeddings that are kept: the same bits wherever they are, and never those of something else."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.unit.trainer.data.conftest import BUCKETS, SIZES, load, session
from trainscope.trainer.batch import Batch, load_batch
from trainscope.trainer.data import embeddings, latents
from trainscope.trainer.data.dataset import TrainingData
from trainscope.trainer.models.load import Components
from trainscope.trainer.session import Session


def kept(data: TrainingData) -> dict[Any, torch.Tensor]:
    text = {caption: embedding.hidden for caption, embedding in data.embeddings.kept.items()}
    return {**data.latents.kept, **text}


def assert_equal(one: dict[Any, torch.Tensor], other: dict[Any, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


DISK = {"data.cache_latents": "disk", "data.cache_text": "disk"}


def forbid_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def encode(*_: Any, **__: Any) -> None:
        raise AssertionError("encoded")

    monkeypatch.setattr(latents, "vae_encode", encode)
    monkeypatch.setattr(embeddings, "encode_text", encode)


def test_a_second_run_encodes_nothing(mixed: Path, sd15: Components, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {**BUCKETS, "data.flip": True, "data.caption_dropout": 0.5}
    in_memory = load(mixed, sd15, **changes)
    first = load(mixed, sd15, **changes, **DISK)
    assert len(first.latents.kept) == 2 * len(SIZES)
    assert set(first.embeddings.kept) == {"", *(sample.caption for sample in first.samples)}
    forbid_encoding(monkeypatch)
    assert_equal(kept(first), kept(in_memory))
    assert_equal(kept(load(mixed, sd15, **changes, **DISK)), kept(first))
    moved = mixed.rename(mixed.with_name("moved"))
    assert_equal(kept(load(moved, sd15, **changes, **DISK)), kept(first))  # known by content


def entries(cache: Path) -> set[Path]:
    return set(cache.rglob("*.safetensors"))


CHANGES: dict[str, dict[str, Any]] = {
    "resolution": {"data.resolution": 48},
    "buckets": BUCKETS,
    "flip": {"data.flip": True},
    "clip skip": {"model.clip_skip": 2},
    "tokens": {"data.max_tokens": 150},
    "emphasis": {"data.weighted_captions": True},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_what_changes_the_value_is_encoded_again(
    change: dict[str, Any], mixed: Path, sd15: Components, cache: Path
) -> None:
    (mixed / "tiny.txt").write_text("a (red:1.3) circle", encoding="utf-8")
    before = {"data.resolution": 32, **DISK}
    load(mixed, sd15, **before)
    count = len(entries(cache))
    changed = load(mixed, sd15, **{**before, **change})
    assert len(entries(cache)) > count
    assert_equal(kept(changed), kept(load(mixed, sd15, **{"data.resolution": 32, **change})))


def test_other_weights_captions_and_pictures_are_encoded_again(mixed: Path, own_sd15: Components, cache: Path) -> None:
    plain, asked = {"data.resolution": 32}, {"data.resolution": 32, **DISK}

    def check(new: int) -> None:
        before = entries(cache)
        data = load(mixed, own_sd15, **asked)
        assert len(entries(cache) - before) == new
        assert_equal(kept(data), kept(load(mixed, own_sd15, **plain)))

    check(new=2 * len(SIZES))
    check(new=0)
    with torch.no_grad():
        own_sd15.vae.encoder.conv_in.bias += 0.1
    check(new=len(SIZES))
    own_sd15.vae.register_to_config(scaling_factor=0.3)
    check(new=len(SIZES))
    with torch.no_grad():
        own_sd15.text_encoder.get_input_embeddings().weight += 0.1
    check(new=len(SIZES))
    (mixed / "wide.txt").write_text("another", encoding="utf-8")
    check(new=1)
    Image.new("RGB", SIZES["wide"], "green").save(mixed / "wide.png")
    check(new=1)
    own_sd15.vae.half()
    before = entries(cache)
    load(mixed, own_sd15, **asked)
    assert len(entries(cache) - before) == len(SIZES)


def test_a_cache_that_cannot_be_used_is_told_and_done_without(mixed: Path, sd15: Components, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    told: list[str] = []
    plain = {"data.resolution": 32}
    data = load(mixed, sd15, told, **plain, **DISK, **{"data.cache_dir": str(tmp_path / "file")})
    assert_equal(kept(data), kept(load(mixed, sd15, **plain)))
    assert [line.partition(" cannot be used")[0] for line in told] == [
        f"the cache {tmp_path / 'file' / name}" for name in ("latents", "text")
    ]


def test_text_that_no_visit_takes_from_memory_is_not_encoded(mixed: Path, sd15: Components) -> None:
    assert not load(mixed, sd15, **{"data.shuffle_captions": True}).embeddings.kept
    assert not load(mixed, sd15, **{"train.parts": ["text_encoder"]}).embeddings.kept
    off = load(mixed, sd15, **{"data.cache_text": "off", "data.cache_latents": "off"})
    assert not kept(off)


def batches(one: Session, count: int, start: int = 0) -> list[Batch]:
    found = itertools.islice(one.data.micro_batches(2, seed=one.seed, start=start), count)
    return [load_batch(one, batch.samples, batch.position) for batch in found]


def same(one: Sequence[Batch], other: Sequence[Batch]) -> bool:
    return [b.samples for b in one] == [b.samples for b in other] and all(
        torch.equal(a.latents, b.latents) and torch.equal(a.text, b.text) for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("base", ["tiny:sd15", "tiny:sdxl"])
def test_all_caches_give_the_same_bits(base: str, mixed: Path) -> None:
    drawn = {"model.base": base, **BUCKETS, "data.flip": True, "data.caption_dropout": 0.3, "data.repeats": 2}
    modes = [{"data.cache_latents": mode, "data.cache_text": mode} for mode in ("memory", "disk", "disk", "off")]
    seen = [batches(session(mixed, **drawn, **mode), 12) for mode in modes]
    assert all(same(other, seen[0]) for other in seen[1:])
    if base == "tiny:sdxl":
        for first, *others in zip(*seen, strict=True):
            assert first.added is not None
            for other in others:
                assert other.added is not None
                assert all(torch.equal(first.added[key], other.added[key]) for key in ("text_embeds", "time_ids"))
    assert len({batch.latents.shape[-2:] for batch in seen[0]}) > 1
