"""The training data as a whole: buckets, the `data` table, and visits that a resume repeats exactly."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.unit.trainer.data.conftest import BUCKETS, SIZES, load, resolved, session
from trainscope.config.plan import plan_run
from trainscope.errors import DataError
from trainscope.runlog.reader import read_run
from trainscope.trainer.batch import load_batch
from trainscope.trainer.callbacks import Callback
from trainscope.trainer.data.dataset import load_data
from trainscope.trainer.data.framing import centre_frame
from trainscope.trainer.data.images import load_image
from trainscope.trainer.data.order import sample_of
from trainscope.trainer.data.visits import EVALUATION
from trainscope.trainer.evaluate import _losses, evaluate
from trainscope.trainer.models.load import Components
from trainscope.trainer.models.vae import vae_encode
from trainscope.trainer.session import Session
from trainscope.trainer.train import train


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
    seen_otherwise = [
        {"data.resolution": 48},
        {"data.flip": True},
        {"data.caption_dropout": 0.5},
        {"data.cache_latents": "disk"},
    ]
    assert all(load(mixed, sd15, **{**plain, **change}).identity() == before for change in seen_otherwise)
    assert load(mixed, sd15, **plain, **{"data.repeats": 2}).identity() != before
    assert load(mixed, sd15, **BUCKETS).identity() != before
    (mixed / "tiny.txt").write_text("another", encoding="utf-8")
    assert load(mixed, sd15, **plain).identity() != before
