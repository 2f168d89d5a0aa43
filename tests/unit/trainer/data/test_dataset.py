"""The training data as a whole: buckets, caches, the `data` table, and visits that a resume repeats exactly."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from trainscope.config.load import ResolvedConfig
from trainscope.config.plan import plan_run
from trainscope.errors import DataError
from trainscope.proof.runs import RunSpec
from trainscope.runlog.reader import read_run
from trainscope.trainer.batch import Batch, load_batch
from trainscope.trainer.build import build_session
from trainscope.trainer.callbacks import Callback
from trainscope.trainer.data import dataset, embeddings, latents
from trainscope.trainer.data.dataset import TrainingData, load_data
from trainscope.trainer.data.framing import centre_frame
from trainscope.trainer.data.images import load_image
from trainscope.trainer.data.order import sample_of
from trainscope.trainer.data.visits import EVALUATION
from trainscope.trainer.evaluate import _losses, evaluate
from trainscope.trainer.models.load import Components
from trainscope.trainer.models.vae import vae_encode
from trainscope.trainer.session import Session
from trainscope.trainer.train import train

BUCKETS = {
    "data.resolution": 32,
    "data.buckets.enabled": True,
    "data.buckets.min": 16,
    "data.buckets.max": 64,
    "data.buckets.step": 16,
}
SIZES = {
    "wide": (96, 40),
    "tall": (40, 100),
    "square": (50, 52),
    "square2": (64, 64),
    "tiny": (20, 12),
    "wide2": (80, 33),
}


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Pictures of several shapes, each with four tags."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    for number, (name, size) in enumerate(SIZES.items()):
        picture = Image.effect_noise(size, 60 + number).convert("RGB")
        picture.paste((200, 30 * number, 10), (0, 0, size[0] // 2, size[1] // 2))
        picture.save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"{name}, red, circle, star", encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's cache folder for each test; the tiny models stay where they are."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(dataset, "default_folder", lambda: folder)
    return folder


def resolved(data: Path, **changes: Any) -> ResolvedConfig:
    keys = {key.replace("__", "."): value for key, value in changes.items()}
    lora = {"train.method": "lora", "data.validation_split": 0.0, "data.dir": str(data)}
    return RunSpec({**lora, **keys}).resolved()


def load(data: Path, components: Components, told: list[str] | None = None, **changes: Any) -> TrainingData:
    return load_data(resolved(data, **changes), components, warn=[].append if told is None else told.append)


def test_the_data_table(mixed: Path, sd15: Components) -> None:
    (mixed / "bad.png").write_bytes(b"")
    (mixed / "square.txt").write_text(" ".join(["red"] * 80), encoding="utf-8")
    changes = {**BUCKETS, "data.repeats": 3, "data.validation_split": 0.2, "data.on_corrupt": "skip"}
    data = load(mixed, sd15, **changes)
    rows = {row["path"]: row for row in data.rows()}
    assert {name: row.get("bucket") for name, row in rows.items()} == {
        "bad.png": None, "square.png": "32x32", "square2.png": "32x32", "tall.png": "16x48", "tiny.png": "32x32",
        "wide.png": "48x16", "wide2.png": "48x16",
    }  # fmt: skip
    assert (rows["square.png"]["tokens"], rows["square.png"]["truncated"]) == (80, 5)
    assert (rows["square.png"]["tags"], rows["wide.png"]["tags"]) == (1, 4)
    assert rows["bad.png"]["dropped"]
    assert rows["bad.png"].get("tokens") is None
    assert (rows["tiny.png"]["width"], rows["tiny.png"]["height"]) == (20, 12)
    (held_out,) = [row for row in rows.values() if row["split"] == "validation"]
    assert {name: row["repeats"] for name, row in rows.items()} == {
        name: 0 if row is held_out or row["dropped"] else 3 for name, row in rows.items()
    }
    assert load(mixed, sd15, **changes, **{"data.max_tokens": 150}).tokens[1] == (80, 0)


def test_plan_and_loop_agree(mixed: Path, sd15: Components) -> None:
    for batch_size, repeats, buckets in itertools.product((1, 2, 4), (1, 3), ({}, BUCKETS)):
        config = resolved(mixed, **{"train.batch_size": batch_size, "data.repeats": repeats, **buckets})
        data = load_data(config, sd15, warn=[].append)
        plan = plan_run(config.config, len(data.train), buckets=data.counts)
        batches = list(itertools.islice(data.micro_batches(batch_size, seed=0), plan.batches_per_epoch + 1))
        assert [batch.epoch for batch in batches] == [0] * plan.batches_per_epoch + [1]
        assert data.batches_per_epoch(batch_size) == plan.batches_per_epoch
        visited = [sample_of(visit) for batch in batches[:-1] for visit in batch.samples]
        assert sorted(visited) == sorted(data.train * repeats)


# --- caches ---------------------------------------------------------------------------------------------------------


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


# --- batches ----------------------------------------------------------------------------------------------------------


def session(data: Path, **changes: Any) -> Session:
    return build_session(resolved(data, **changes))


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


def test_a_flipped_picture_is_encoded_flipped(mixed: Path) -> None:
    one = session(mixed, **BUCKETS, **{"data.flip": True})
    found = {True: 0, False: 0}
    for batch in itertools.islice(one.data.micro_batches(1, seed=1), 20):
        (visit,) = one.data.visits(batch.samples, seed=one.seed, position=batch.position)
        picture = load_image(visit.sample, centre_frame((visit.sample.width, visit.sample.height), visit.frame.target))
        picture = picture.flip(-1) if visit.frame.mirrored else picture
        wanted = vae_encode(one.components.vae, picture[None])
        assert torch.allclose(load_batch(one, batch.samples, batch.position).latents, wanted, atol=1e-4)
        found[visit.frame.mirrored] += 1
    assert min(found.values()) > 4


def test_repeats_in_a_batch_have_noise_of_their_own(mixed: Path) -> None:
    for path in sorted(mixed.glob("*.png"))[1:]:
        path.unlink()
    one = session(mixed, **{"data.resolution": 32, "data.repeats": 4, "train.batch_size": 4})
    (batch,) = itertools.islice(one.data.micro_batches(4, seed=1), 1)
    assert list(map(sample_of, batch.samples)) == [0] * 4
    loaded = load_batch(one, batch.samples, 0)
    draw = one.draws.at(0, loaded.samples, loaded.latents.shape[1:])
    assert len({tuple(noise.flatten().tolist()) for noise in draw.noise}) == 4


def test_evaluations_compare_whatever_is_drawn_in_training(mixed: Path) -> None:
    """The same loss with other seeds and visits, and the mean over pictures that are taken one by one."""
    plain = {**BUCKETS, "eval.samples": 12}
    drawn = {
        "data.flip": True, "data.caption_dropout": 0.9, "data.repeats": 2, "data.random_crop": True,
        "data.cache_latents": "off", "run.seed": 5,
    }  # fmt: skip
    one = session(mixed, **plain)
    assert len({one.data.buckets[sample] for sample in one.data.evaluation}) > 1
    loss = evaluate(one)
    assert evaluate(session(mixed, **plain, **drawn)) == loss
    shuffled = evaluate(session(mixed, **plain, **{"data.shuffle_captions": True}))
    assert shuffled == pytest.approx(loss, rel=1e-4)  # encoded in other batches
    whole, singles = one.data.evaluation, []
    for number in range(12):
        one.data.validation = [whole[number % len(whole)]] * 12
        with torch.no_grad():
            singles.append(float(_losses(one, [number], 12)))
    assert sum(singles) / 12 == pytest.approx(loss, rel=1e-4)


# --- inpainting -------------------------------------------------------------------------------------------------------


def test_masks_need_an_inpainting_model(mixed: Path, sd15: Components) -> None:
    with pytest.raises(DataError, match="is not an inpainting model"):
        load(mixed, sd15, **{"data.mask_dir": str(mixed)})


@pytest.mark.parametrize("masks", [False, True], ids=["random", "folder"])
def test_the_condition_follows_crop_and_mirror(masks: bool, mixed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "masks"
    folder.mkdir()
    for name, size in SIZES.items():
        mask = Image.new("L", size, 0)
        mask.paste(255, (0, 0, size[0] // 2, size[1] // 2))  # where the pictures are plain
        mask.save(folder / f"{name}.png")
    changes = {**BUCKETS, "model.base": "tiny:sd15-inpainting", "data.flip": True, "data.random_crop": True}
    if masks:
        changes["data.mask_dir"] = str(folder)
    one = session(mixed, **changes, **{"data.cache_latents": "off"})
    components = one.components
    for batch in itertools.islice(one.data.micro_batches(2, seed=1), 8):
        visits = one.data.visits(batch.samples, seed=one.seed, position=batch.position)
        loaded = load_batch(one, batch.samples, batch.position)
        assert loaded.condition is not None
        assert loaded.condition.shape == (len(visits), 5, *loaded.latents.shape[2:])
        for visit, latent, condition in zip(visits, loaded.latents, loaded.condition, strict=True):
            picture = load_image(visit.sample, visit.frame)
            assert torch.allclose(vae_encode(components.vae, picture[None])[0], latent, atol=1e-4)
            mask = one.data._mask(visit, seed=one.seed, position=batch.position)
            assert mask.shape[1:] == picture.shape[1:]
            if masks:  # the plain part of the picture is what is masked, wherever the frame puts it
                plain = picture[2].sub(10 / 127.5 - 1).abs() < 0.02
                assert float((plain == (mask[0] > 0.5)).float().mean()) > 0.85
            assert torch.equal(condition[0], torch.nn.functional.interpolate(mask[None], size=latent.shape[1:])[0, 0])
            masked = vae_encode(components.vae, (picture * (mask < 0.5))[None])[0]
            assert torch.allclose(condition[1:], masked, atol=1e-4)


def test_held_out_masks_do_not_depend_on_the_seed(mixed: Path, inpainting: Components) -> None:
    data = load(mixed, inpainting, **{"data.resolution": 32})
    conditions = []
    for seed, position in ((1, EVALUATION), (2, EVALUATION), (1, 0), (2, 0)):
        visits = data.visits([0, 1], seed=seed, position=position)
        conditions.append(data.inpainting_condition(inpainting, visits, seed=seed, position=position))
    assert torch.equal(conditions[0], conditions[1])
    assert not torch.equal(conditions[2], conditions[3])


# --- resume -----------------------------------------------------------------------------------------------------------

EVERYTHING: dict[str, Any] = {
    **BUCKETS,
    "data.repeats": 2,
    "data.flip": True,
    "data.random_crop": True,
    "data.cache_latents": "off",
    "data.shuffle_captions": True,
    "data.keep_tokens": 1,
    "data.caption_dropout": 0.3,
    "data.weighted_captions": True,
    "data.max_tokens": 150,
    "train.batch_size": 2,
    "train.steps": 12,
    "eval.every_steps": 4,
    "eval.samples": 4,
    "checkpoint.save_state": True,
    "probes.tables": [],
}


class Seen(Callback):
    """Keeps hold of the session."""

    session: Session

    def on_start(self, session: Session) -> None:
        self.session = session


def test_a_run_that_was_stopped_in_an_epoch_goes_on_as_if_it_had_not_been(mixed: Path, tmp_path: Path) -> None:
    whole, halves = Seen(), Seen()
    config = resolved(mixed, **EVERYTHING)
    straight = train(config, out=tmp_path / "whole", callbacks=[whole])
    train(config, out=tmp_path / "halves", stop_at=5)
    resumed = train(config, out=tmp_path / "halves", resume="latest", callbacks=[halves])
    assert 5 % whole.session.data.batches_per_epoch(2) != 0
    assert all(torch.equal(a, b) for a, b in zip(whole.session.tensors, halves.session.tensors, strict=True))
    logs = [read_run(finished.run.path).datasets for finished in (straight, resumed)]
    for table, columns in (("order", ["step", "sample", "position", "epoch"]), ("evals", ["step", "loss"])):
        first, second = (log[table].to_table(columns=columns).to_pylist() for log in logs)
        assert first
        assert sorted(map(json.dumps, first)) == sorted(map(json.dumps, second))


def test_what_a_position_means_is_what_identifies_the_data(mixed: Path, sd15: Components) -> None:
    plain = {"data.resolution": 32}
    before = load(mixed, sd15, **plain).identity()
    seen_otherwise = [{"data.resolution": 48}, {"data.flip": True}, {"data.caption_dropout": 0.5}, DISK]
    assert all(load(mixed, sd15, **{**plain, **change}).identity() == before for change in seen_otherwise)
    assert load(mixed, sd15, **plain, **{"data.repeats": 2}).identity() != before
    assert load(mixed, sd15, **BUCKETS).identity() != before
    (mixed / "tiny.txt").write_text("another", encoding="utf-8")
    assert load(mixed, sd15, **plain).identity() != before
