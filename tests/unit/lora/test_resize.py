"""Resizing against the singular values of the whole ΔW, in float64."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.unit.lora.loras import CONV, LINEAR, Tensors, adapter, diffusers_tensors, factors, kohya_tensors, write
from trainscope.errors import ModelError
from trainscope.lora.file import LoraFile, LoraFilePair, read_lora
from trainscope.lora.loss import losses
from trainscope.lora.resize import ResizedPair, Target, resize
from trainscope.lora.tensors import decode
from trainscope.lora.write import write_resized

Matrix = NDArray[np.float64]


def change(pair: LoraFilePair) -> Matrix:
    """ΔW of a pair, as a matrix: the slow and certain way."""
    up, down = pair.up.astype(np.float64), pair.down.astype(np.float64)
    return pair.scale * (up.reshape(len(up), -1) @ down.reshape(len(down), -1))


def change_after(new: ResizedPair) -> Matrix:
    up = decode(new.up, new.dtype).astype(np.float64).reshape(len(new.pair.up), -1)
    down = decode(new.down, new.dtype).astype(np.float64).reshape(new.rank, -1)
    return new.alpha / new.rank * (up @ down)


def truncated(matrix: Matrix, rank: int) -> Matrix:
    u, values, v = np.linalg.svd(matrix, full_matrices=False)
    return np.asarray((u[:, :rank] * values[:rank]) @ v[:rank])


@st.composite
def lora_files(draw: st.DrawFn) -> tuple[Tensors, dict[str, str]]:
    """Two modules, linear or convolutions, in one of the layouts, of all sorts of ranks and spectra."""
    kohya = draw(st.booleans())
    tensors: Tensors = {}
    for number in range(2):
        kernel = draw(st.sampled_from([(), (1, 1), (3, 3)]))
        sides = draw(st.integers(1, 12)), draw(st.integers(1, 12))
        rank = draw(st.integers(1, 8))
        a, b = factors(rank, (sides[0], *(1 for _ in kernel)), (sides[1], *kernel), draw(st.integers(0, 99)))
        a *= np.float32(10.0) ** -(draw(st.integers(0, 3)) ** np.arange(rank).reshape(-1, *(1 for _ in a.shape[1:])))
        if draw(st.integers(0, 9)) == 0:
            b[:] = 0
        if kohya:
            stem = f"lora_unet_down_blocks_{number}_x"
            tensors |= {f"{stem}.lora_down.weight": a, f"{stem}.lora_up.weight": b}
            if draw(st.booleans()):
                alpha = draw(st.floats(0.01, 100) | st.floats(-2, -0.5))
                tensors[f"{stem}.alpha"] = np.array(alpha, np.float32)
        else:
            stem = f"unet.down_blocks.{number}.x"
            tensors |= {f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b}
    settings = {"r": 4, "lora_alpha": draw(st.floats(0.1, 9)), "use_rslora": draw(st.booleans())}
    return tensors, {} if kohya or draw(st.booleans()) else adapter(**settings)


@settings(max_examples=150, deadline=None)
@given(
    made=lora_files(),
    rank=st.none() | st.integers(1, 8),
    energy=st.floats(0.01, 1.0),
    alpha=st.none() | st.floats(0.1, 30),
)
def test_the_best_of_its_rank_with_the_same_strength(
    tmp_path_factory: pytest.TempPathFactory,
    made: tuple[Tensors, dict[str, str]],
    rank: int | None,
    energy: float,
    alpha: float | None,
) -> None:
    folder = tmp_path_factory.mktemp("resize")
    file = read_lora(write(folder / "a.safetensors", *made))
    largest = max(max(pair.rank, min(change(pair).shape)) for pair in file.pairs)
    target = Target(rank=rank and min(rank, largest), energy=None if rank else energy, alpha=alpha)
    resized = resize(file, target)
    write_resized(file, resized, folder / "b.safetensors", "a test")
    again = {pair.key: pair for pair in read_lora(folder / "b.safetensors").pairs}
    for new in resized:
        before = change(new.pair)
        values = np.linalg.svd(before, compute_uv=False)
        total = float(np.sum(values**2))
        if target.rank:
            assert new.rank == target.rank
        elif total:
            assert np.sum(values[: new.rank] ** 2) >= (energy - 1e-9) * total
            assert new.rank == 1 or np.sum(values[: new.rank - 1] ** 2) < (energy + 1e-9) * total
        want = truncated(before, new.rank)
        tolerance = 2e-6 * max(float(np.linalg.norm(before)), 1e-30)
        assert np.linalg.norm(change_after(new) - want) <= tolerance
        assert np.linalg.norm(change(again[new.pair.key]) - want) <= tolerance, "as a reader takes it"
        assert again[new.pair.key].alpha == pytest.approx(new.alpha)
        if alpha is not None:
            assert new.alpha == pytest.approx(alpha)
        assert new.energy == pytest.approx(total, rel=1e-6)
        assert new.kept == pytest.approx(float(np.sum(values[: new.rank] ** 2)), rel=1e-6, abs=1e-12 * total)
        measured = np.linalg.norm(before - change_after(new)) / math.sqrt(total) if total else 0.0
        assert new.lost == pytest.approx(measured, abs=1e-7)


def linear(tmp_path: Path, tensors: Tensors | None = None, metadata: dict[str, str] | None = None) -> LoraFile:
    return read_lora(write(tmp_path / "a.safetensors", tensors or diffusers_tensors(), metadata))


def test_alpha_keeps_its_ratio_to_the_rank(tmp_path: Path) -> None:
    file = linear(tmp_path, kohya_tensors(rank=4, alpha=2.0))
    assert {new.alpha for new in resize(file, Target(rank=2))} == {1.0}
    assert {new.alpha for new in resize(file, Target(rank=8))} == {4.0}
    assert {new.alpha for new in resize(file, Target(rank=2, alpha=8.0))} == {8.0}


def test_a_larger_rank_has_the_same_effect_and_can_be_trained(tmp_path: Path) -> None:
    file = linear(tmp_path)
    for new in resize(file, Target(rank=8)):
        assert new.lost < 1e-6
        up = decode(new.up, "F32").reshape(-1, 8)
        down = decode(new.down, "F32").reshape(8, -1)
        assert up[:, :4].any(axis=0).all()
        assert not up[:, 4:].any()
        assert down[4:].any(axis=1).all(), "with both halves zero nothing would ever learn"
        assert np.abs(down[4:]).max() <= 1 / math.sqrt(down.shape[1])
    once, twice = (resize(file, Target(rank=8)) for _ in range(2))
    assert [new.down for new in once] == [new.down for new in twice]


def test_an_untrained_lora_stays_trainable(tmp_path: Path) -> None:
    tensors = diffusers_tensors()
    for name in tensors:
        if "lora_B" in name:
            tensors[name] = np.zeros_like(tensors[name])
    for target in (Target(rank=2), Target(energy=0.9)):
        for new in resize(linear(tmp_path, tensors), target):
            assert not decode(new.up, "F32").any()
            assert decode(new.down, "F32").all()
            assert (new.energy, new.kept, new.lost) == (0.0, 0.0, 0.0)


def test_directions_that_are_only_rounding_are_not_kept(tmp_path: Path) -> None:
    tensors = diffusers_tensors()
    for name in (f"unet.{LINEAR}.lora_A.weight", f"unet.{CONV}.lora_A.weight"):
        tensors[name][2:] = tensors[name][:2]
    assert {new.rank for new in resize(linear(tmp_path, tensors), Target(energy=1.0))} == {2}


def test_halves_of_equal_size_survive_fp16(tmp_path: Path) -> None:
    """2⁻²⁰ in one half and 2²⁰ in the other are beyond fp16; their product is not."""
    a, b = factors(2, (6,), (5,))
    tensors: Tensors = {"unet.x.lora_A.weight": a * np.float32(2**-20), "unet.x.lora_B.weight": b * np.float32(2**20)}
    [new] = resize(linear(tmp_path, tensors), Target(rank=2, dtype="fp16"))
    assert new.dtype == "F16"
    assert 1e-5 < new.lost < 2e-3
    assert new.kept == pytest.approx(new.energy)


def test_values_beyond_the_dtype_are_refused(tmp_path: Path) -> None:
    a, b = factors(2, (6,), (5,))
    tensors: Tensors = {"unet.x.lora_A.weight": a * np.float32(1e6), "unet.x.lora_B.weight": b * np.float32(1e6)}
    file = linear(tmp_path, tensors)
    with pytest.raises(ModelError, match=r"unet\.x as f16"):
        resize(file, Target(rank=1, dtype="fp16"))
    assert resize(file, Target(rank=2, dtype="bf16"))[0].lost < 0.01


def test_a_rank_without_use_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no module of .* has use for more than 10"):
        resize(linear(tmp_path), Target(rank=11))


def test_the_loss_of_blocks_and_in_total(tmp_path: Path) -> None:
    resized = resize(linear(tmp_path), Target(rank=1))
    blocks, total = losses(resized)
    assert [block.name for block in blocks] == ["down_blocks.0"]
    assert dataclasses.replace(blocks[0], name="total", worst_module="") == dataclasses.replace(total, worst_module="")
    before, after = (np.concatenate([f.ravel() for f in parts]) for parts in (
        [change(new.pair) for new in resized], [change_after(new) for new in resized]
    ))  # fmt: skip
    assert total.lost == pytest.approx(np.linalg.norm(before - after) / np.linalg.norm(before), rel=1e-5)
    assert total.kept == pytest.approx(1 - total.lost**2, rel=1e-5)
    assert total.worst == max(new.lost for new in resized)
