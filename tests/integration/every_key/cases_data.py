"""The keys of `[data]` and `[noise]`: what the steps are given."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.integration.every_key.cases_training import differ, larger, smaller
from tests.integration.every_key.pictures import CAPTIONS
from tests.integration.every_key.watch import Case, Own, Seen, Values, Watcher
from trainscope.errors import DataError
from trainscope.trainer.models.text import encode_text

LONGER: Values = {"train.steps": 6}
"""Three epochs, so that what happens to some visits has happened to one."""
BUCKETS: Values = {
    "data.buckets.enabled": True,
    "data.buckets.min": 16,
    "data.buckets.max": 64,
    "data.buckets.step": 16,
}
INPAINTING: Values = {"model.base": "tiny:sd15-inpainting"}


def by_picture(seen: Seen) -> dict[int, Tensor]:
    """The latents of each picture, [visits, 4, h, w]."""
    found: dict[int, list[Tensor]] = {}
    for one in seen.passes:
        for number, latent in zip(one.pictures, one.batch.latents, strict=True):
            found.setdefault(number, []).append(latent)
    return {number: torch.stack(latents) for number, latents in found.items()}


def texts_by_picture(seen: Seen) -> dict[int, list[Tensor]]:
    found: dict[int, list[Tensor]] = {}
    for number, text in seen.texts:
        found.setdefault(number, []).append(text)
    return found


def encoded(seen: Seen, caption: str) -> Tensor:
    return encode_text(seen.session.components, [caption]).hidden[0]


def sizes(seen: Seen) -> set[tuple[int, int]]:
    """Height and width of what is trained on, in px."""
    return {(8 * one.batch.latents.shape[2], 8 * one.batch.latents.shape[3]) for one in seen.passes}


def data_dir(watcher: Watcher) -> None:
    """Mirrored pictures in another folder: their latents are trained on."""
    plain, other = watcher.seen(LONGER), watcher.see({**LONGER, "data.dir": str(watcher.mirrored)})
    assert plain.visited == other.visited
    assert not torch.equal(plain.latents, other.latents)


def data_flip(watcher: Watcher) -> None:
    """Each latent is that of the picture or that of the mirrored picture, and both occur."""
    plain = {number: latents[0] for number, latents in by_picture(watcher.seen(LONGER)).items()}
    mirrored = by_picture(watcher.see({**LONGER, "data.dir": str(watcher.mirrored)}))
    ways = Counter[str]()
    for number, latents in by_picture(watcher.see({**LONGER, "data.flip": True})).items():
        for latent in latents:
            is_plain = torch.allclose(latent, plain[number], atol=1e-5)
            assert is_plain != torch.allclose(latent, mirrored[number][0], atol=1e-5)
            ways["plain" if is_plain else "mirrored"] += 1
    assert ways["plain"] > 0
    assert ways["mirrored"] > 0


def data_random_crop(watcher: Watcher) -> None:
    """Every visit sees another place of the picture; without it all are the same."""
    off = {**LONGER, "data.cache_latents": "off"}
    assert all(torch.equal(latents[0], other) for latents in by_picture(watcher.see(off)).values() for other in latents)
    cropped = by_picture(watcher.see({**off, "data.random_crop": True}))
    assert any(not torch.equal(latents[0], other) for latents in cropped.values() for other in latents)


def data_shuffle(watcher: Watcher) -> None:
    """The text of a picture is that of its tags in some order, and not always the same one."""
    base = {**LONGER, "optimizer.lr": 0.0}
    plain, shuffled = watcher.see(base), watcher.see({**base, "data.shuffle_captions": True})
    tags = CAPTIONS[0].split(", ")
    orders = {order: encoded(plain, ", ".join(order)) for order in _orders(tags)}
    seen = [_which(orders, text) for text in texts_by_picture(shuffled)[0]]
    assert len(set(seen)) > 1
    kept = watcher.see({**base, "data.shuffle_captions": True, "data.keep_tokens": 2})
    seen = [_which(orders, text) for text in texts_by_picture(kept)[0]]
    assert all(list(order[:2]) == tags[:2] for order in seen)


def _orders(tags: list[str]) -> list[tuple[str, ...]]:
    import itertools

    return list(itertools.permutations(tags))


def _which(orders: dict[tuple[str, ...], Tensor], text: Tensor) -> tuple[str, ...]:
    return next(order for order, other in orders.items() if torch.allclose(other, text, atol=1e-5))


def data_keep_tokens(watcher: Watcher) -> None:
    base = {**LONGER, "data.shuffle_captions": True}
    free, kept = watcher.see(base), watcher.see({**base, "data.keep_tokens": 3})
    tags = CAPTIONS[0].split(", ")
    allowed = {order: encoded(free, ", ".join(order)) for order in _orders(tags)}
    assert {order[:3] for order in (_which(allowed, text) for text in texts_by_picture(kept)[0])} == {tuple(tags[:3])}
    assert {order[:3] for order in (_which(allowed, text) for text in texts_by_picture(free)[0])} != {tuple(tags[:3])}


def data_caption_dropout(watcher: Watcher) -> None:
    """1: all text is the empty caption's. In between some is."""
    seen = watcher.see({**LONGER, "data.caption_dropout": 1.0})
    empty = encoded(seen, "")
    assert all(torch.allclose(text, empty, atol=1e-6) for _, text in seen.texts)
    some = [
        torch.allclose(text, empty, atol=1e-6) for _, text in watcher.see({**LONGER, "data.caption_dropout": 0.5}).texts
    ]
    assert 0 < sum(some) < len(some)
    assert not any(torch.allclose(text, empty, atol=1e-6) for _, text in watcher.seen(LONGER).texts)


def data_cache_latents(watcher: Watcher) -> None:
    """disk leaves files that the next run reads, memory none; off encodes at every visit. All train the same."""
    _cache(watcher, "data.cache_latents", "latents")


def data_cache_text(watcher: Watcher) -> None:
    _cache(watcher, "data.cache_text", "text")


def _cache(watcher: Watcher, key: str, kind: str) -> None:
    folder = watcher.folder / f"cache-{kind}"
    base = {**LONGER, "data.cache_dir": str(folder)}
    memory = watcher.see(base)
    assert not folder.exists()
    disk = watcher.see({**base, key: "disk"})
    kept = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert kept
    again = watcher.see({**base, key: "disk"})
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == kept
    shutil.rmtree(folder)
    off = watcher.see({**base, key: "off"})
    assert not folder.exists()
    for other in (disk, again, off):
        assert torch.allclose(memory.latents, other.latents, atol=1e-5)
        assert all(torch.allclose(a[1], b[1], atol=1e-5) for a, b in zip(memory.texts, other.texts, strict=True))
    assert off.encoded[kind] > memory.encoded[kind] > again.encoded[kind] == 0


def data_cache_dir(watcher: Watcher) -> None:
    """Where the files go."""
    for name in ("here", "there"):
        watcher.see({"data.cache_latents": "disk", "data.cache_dir": str(watcher.folder / name)})
        assert any(path.is_file() for path in (watcher.folder / name).rglob("*"))


def data_on_corrupt(watcher: Watcher) -> None:
    """fail ends before the training, skip leaves the picture out."""
    folder = Path(shutil.copytree(watcher.pictures, watcher.folder / "broken"))
    (folder / "1.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"1\.png"):
        watcher.see({"data.dir": str(folder)})
    seen = watcher.see({**LONGER, "data.dir": str(folder), "data.on_corrupt": "skip"})
    assert set(seen.visited) == {0, 2, 3}


def data_validation_split(watcher: Watcher) -> None:
    """Half of the pictures are never trained on; without it all are."""
    assert set(watcher.seen(LONGER).visited) == {0, 1, 2, 3}
    seen = watcher.see({**LONGER, "data.validation_split": 0.5, "eval.every_steps": 6, "eval.samples": 2})
    assert len(set(seen.visited)) == 2
    assert set(seen.column("evals", "split")) == {"validation"}


def masks(seen: Seen) -> Tensor:
    """The masks that the UNet is given."""
    return torch.cat([one.noisy[:, 4:5] for one in seen.passes])


def half_masked(before: Tensor, after: Tensor) -> bool:
    """The left half of every picture is repainted; what is drawn at random is not so regular."""
    left, right = after[..., : after.shape[-1] // 2], after[..., after.shape[-1] // 2 :]
    return bool((left == 1).all() and (right == 0).all() and not (before == after).all())


def channel_means(seen: Seen) -> float:
    """The variance of the noise's means over a channel."""
    return float(seen.noise.mean(dim=(2, 3)).square().mean())


def smoothness(seen: Seen) -> float:
    """How alike neighbouring pixels of the noise are: 0 for white noise."""
    noise = seen.noise
    return float((noise[..., 1:] * noise[..., :-1]).mean() / noise.square().mean())


def weights_by_snr(seen: Seen) -> list[tuple[float, float]]:
    """What each sample's loss counts, and the signal-to-noise ratio of its timestep."""
    alphas = seen.session.components.noise_scheduler.alphas_cumprod.double()
    found = []
    for one in seen.passes:
        for timestep, weight in zip(one.draw.timesteps, one.weighted / one.losses, strict=True):
            alpha = float(alphas[timestep])
            found.append((float(weight), alpha / (1 - alpha)))
    return found


def weighs(found: list[tuple[float, float]], formula: Callable[[float], float]) -> bool:
    return all(math.isclose(weight, formula(snr), rel_tol=1e-4) for weight, snr in found)


def equally(snr: float) -> float:
    return 1.0


def min_snr(snr: float) -> float:
    """Of the noise, with a gamma of 2 (arXiv 2303.09556)."""
    return min(snr, 2.0) / snr


def debiased(snr: float) -> float:
    """arXiv 2310.08442, with a cap."""
    return 1 / math.sqrt(min(snr, 1000.0))


MANY: Values = {"train.steps": 4, "train.batch_size": 4}
"""Sixteen draws."""
FINE: Values = {**MANY, "data.resolution": 128}
"""With latents of 16 by 16, so that there is something between a pixel and the whole."""
LOGIT_NORMAL: Values = {**MANY, "noise.timestep_sampling": "logit-normal"}


CASES: dict[str, Case | Own] = {
    "data.dir": data_dir,
    "data.caption_extension": Case(".caption", lambda seen: seen.texts, differ),
    "data.repeats": Case(
        2,
        lambda seen: (seen.finished.step, Counter(seen.visited)),
        lambda before, after: after[0] == 2 * before[0] and set(after[1].values()) == {2},
        base={"train.steps": None, "train.epochs": 1},
    ),
    "data.resolution": Case(64, sizes, lambda before, after: (before, after) == ({(32, 32)}, {(64, 64)})),
    "data.buckets.enabled": Case(
        True,
        sizes,
        lambda before, after: (before, after) == ({(32, 32)}, {(16, 48), (48, 16)}),
        base={**BUCKETS, "data.buckets.enabled": False},
    ),
    "data.buckets.min": Case(32, sizes, lambda before, after: after == {(32, 32)}, base=BUCKETS),
    "data.buckets.max": Case(32, sizes, lambda before, after: after == {(16, 32), (32, 16)}, base=BUCKETS),
    "data.buckets.step": Case(8, sizes, lambda before, after: after == {(24, 40), (40, 24)}, base=BUCKETS),
    "data.random_crop": data_random_crop,
    "data.flip": data_flip,
    "data.shuffle_captions": data_shuffle,
    "data.keep_tokens": data_keep_tokens,
    "data.caption_dropout": data_caption_dropout,
    "data.weighted_captions": Case(True, lambda seen: texts_by_picture(seen)[1], differ, base=LONGER),
    "data.max_tokens": Case(
        150,
        lambda seen: {text.shape[0] for _, text in seen.texts},
        lambda before, after: before == {77} and max(after) == 154,
        base=LONGER,
    ),
    "data.cache_latents": data_cache_latents,
    "data.cache_text": data_cache_text,
    "data.cache_dir": data_cache_dir,
    "data.validation_split": data_validation_split,
    "data.mask_dir": Case(lambda watcher: str(watcher.masks), masks, half_masked, base=INPAINTING),
    "data.on_corrupt": data_on_corrupt,
    "noise.offset": Case(1.0, channel_means, lambda before, after: after > before + 0.5, base=MANY),
    "noise.multires_iterations": Case(
        6, smoothness, lambda before, after: after > before + 0.1, base={**FINE, "noise.multires_discount": 0.9}
    ),
    "noise.multires_discount": Case(0.9, smoothness, larger, base={**FINE, "noise.multires_iterations": 6}),
    "noise.input_perturbation": Case(
        0.5,
        lambda seen: float((seen.passes[0].draw.added - seen.passes[0].draw.noise).std()),
        lambda before, after: before == 0 and 0.4 < after < 0.6,
    ),
    "noise.min_snr_gamma": Case(
        2.0, weights_by_snr, lambda before, after: weighs(before, equally) and weighs(after, min_snr), base=MANY
    ),
    "noise.debiased": Case(
        True, weights_by_snr, lambda before, after: weighs(before, equally) and weighs(after, debiased), base=MANY
    ),
    "noise.timestep_sampling": Case(
        "logit-normal",
        lambda seen: float((seen.timesteps.float() - 500).abs().mean()),
        smaller,
        base={**MANY, "noise.logit_std": 0.3},
    ),
    "noise.logit_mean": Case(
        2.0,
        lambda seen: float(seen.timesteps.float().mean()),
        larger,
        base=LOGIT_NORMAL,
    ),
    "noise.logit_std": Case(
        0.1,
        lambda seen: float(seen.timesteps.float().std()),
        smaller,
        base=LOGIT_NORMAL,
    ),
    "noise.min_timestep": Case(
        900, lambda seen: int(seen.timesteps.min()), lambda before, after: before < 900 <= after, base=MANY
    ),
    "noise.max_timestep": Case(
        100, lambda seen: int(seen.timesteps.max()), lambda before, after: before >= 100 > after, base=MANY
    ),
}
