"""Entries on disk: found again only for the very same inputs, and never in the way of a training."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from trainscope.trainer.data.cache import DiskCache, default_folder, model_identity
from trainscope.trainer.models.load import Components


class Counted:
    """Makes an entry, and counts how often it is asked to."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> dict[str, Tensor]:
        self.count += 1
        return {"latent": torch.arange(6.0).reshape(2, 3).T * self.count}


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def cache(tmp_path: Path, told: list[str]) -> Callable[..., DiskCache]:
    return lambda **about: DiskCache(tmp_path / "cache", about, told.append)


def entry(folder: Path) -> Path:
    (found,) = (path for path in folder.rglob("*") if path.is_file())
    return found


def test_an_entry_is_made_once_and_read_by_the_next(cache: Callable[..., DiskCache], told: list[str]) -> None:
    made = Counted()
    first = cache(vae="v").get(made, picture="p")["latent"]
    again = cache(vae="v").get(made, picture="p")["latent"]
    assert made.count == 1
    assert torch.equal(first, again)
    assert again.is_contiguous()
    assert entry(cache().folder).suffix == ".safetensors"
    assert not told


@pytest.mark.parametrize("change", [{"vae": "w"}, {"picture": "q"}, {"frame": [1, 2]}])
def test_whatever_differs_is_another_entry(change: dict[str, object], cache: Callable[..., DiskCache]) -> None:
    values = {"picture": "p", "frame": [1, 1], "vae": "v"} | change
    made = Counted()
    cache(vae="v").get(made, picture="p", frame=[1, 1])
    cache(vae=values.pop("vae")).get(made, **values)
    assert made.count == 2


def test_encoders_and_subjects_may_use_the_same_words(cache: Callable[..., DiskCache]) -> None:
    assert len({cache(weights=one).path(weights=other) for one in "ab" for other in "ab"}) == 4


def test_another_format_is_another_entry(cache: Callable[..., DiskCache], monkeypatch: pytest.MonkeyPatch) -> None:
    before = cache().path(picture="p")
    monkeypatch.setattr("trainscope.trainer.data.cache.FORMAT", 99)
    assert cache().path(picture="p") != before


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(bytes(data))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def other_content(path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"latent": torch.zeros(3, 2)}, path)


@pytest.mark.parametrize("damage", [cut, flip_a_bit, empty, other_content])
def test_damaged_entries_are_made_again_and_told_once(
    damage: Callable[[Path], None], cache: Callable[..., DiskCache], told: list[str]
) -> None:
    for picture in "pq":
        cache().get(Counted(), picture=picture)
    for path in [path for path in cache().folder.rglob("*") if path.is_file()]:
        damage(path)
    made, reading = Counted(), cache()
    for picture in "pq":
        reading.get(made, picture=picture)
    assert made.count == 2
    assert len(told) == 1
    assert "is damaged" in told[0]
    for picture in "pq":
        cache().get(made, picture=picture)
    assert made.count == 2  # they were replaced
    assert len(told) == 1


def test_a_folder_that_cannot_be_written_is_told_once(tmp_path: Path, told: list[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    cache, made = DiskCache(tmp_path / "file" / "cache", {}, told.append), Counted()
    assert torch.equal(cache.get(made, picture="p")["latent"], Counted()()["latent"])
    cache.get(made, picture="q")
    assert made.count == 2
    (line,) = told
    assert f"the cache {tmp_path / 'file' / 'cache'} cannot be used any more" in line


def test_a_full_disk_is_told_once(
    cache: Callable[..., DiskCache], told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_path: Path, _data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trainscope.trainer.data.cache.write_atomically", full)
    one, made = cache(), Counted()
    one.get(made, picture="p")
    one.get(made, picture="q")
    assert made.count == 2
    (line,) = told
    assert "no space left on device" in line
    assert "going on without" in line


def test_several_may_fill_it_at_once(cache: Callable[..., DiskCache], told: list[str]) -> None:
    caches = [cache() for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(one.get, Counted(), picture=number) for number in range(8) for one in caches]
        found = [job.result()["latent"] for job in jobs]
    assert all(torch.equal(one, found[0]) for one in found)
    files = [path for path in cache().folder.rglob("*") if path.is_file()]
    assert len(files) == 8
    assert not [path for path in files if path.name.startswith(".")]
    made = Counted()
    for number in range(8):
        cache().get(made, picture=number)
    assert made.count == 0
    assert not told


def test_models_are_told_apart_by_weights_format_and_settings(own_sd15: Components) -> None:
    vae = own_sd15.vae
    before = model_identity(vae)
    assert model_identity(vae) == before
    seen = [before]
    vae.register_to_config(scaling_factor=0.5)
    seen.append(model_identity(vae))
    with torch.no_grad():
        vae.decoder.conv_out.bias[0] += 1
    seen.append(model_identity(vae))
    seen.append(model_identity(vae.half()))
    assert all(one != other for number, one in enumerate(seen) for other in seen[:number])
    assert model_identity(own_sd15.text_encoder)["config"]


def test_the_default_is_the_users_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "trainscope" / "cache"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_folder() == Path.home() / ".cache" / "trainscope" / "cache"
