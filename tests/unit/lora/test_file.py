"""What `read_lora` makes of sound files, and how it refuses the others."""

from __future__ import annotations

import contextlib
import json
import math
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.lora.loras import CONV, LINEAR, Tensors, adapter, diffusers_tensors, kohya_tensors, write
from trainscope.errors import ModelError
from trainscope.lora.file import read_lora, survey

A, B = f"unet.{LINEAR}.lora_A.weight", f"unet.{LINEAR}.lora_B.weight"


def test_diffusers_without_metadata(tmp_path: Path) -> None:
    tensors = diffusers_tensors()
    write(tmp_path / "pytorch_lora_weights.safetensors", tensors)
    file = read_lora(tmp_path)
    assert (file.layout, file.path.name, file.rest) == ("diffusers", "pytorch_lora_weights.safetensors", [])
    pair = next(pair for pair in file.pairs if pair.matches(LINEAR))
    assert (pair.component, pair.key, pair.rank, pair.dtype) == ("unet", f"unet.{LINEAR}", 4, "fp32")
    assert (pair.alpha, pair.alpha_origin, pair.scale) == (4.0, "assumed", 1.0)
    np.testing.assert_array_equal(pair.down, tensors[A])
    np.testing.assert_array_equal(pair.up, tensors[B])
    assert next(pair for pair in file.pairs if pair.matches(CONV)).down.shape == (4, 6, 3, 3)


def test_diffusers_with_metadata_and_patterns(tmp_path: Path) -> None:
    header = adapter(r=4, lora_alpha=2, alpha_pattern={r"^down_blocks\.0\.resnets.*conv1": 16.0, "other": 3})
    file = read_lora(write(tmp_path / "a.safetensors", diffusers_tensors(), header))
    assert {pair.module: (pair.alpha, pair.scale, pair.alpha_origin) for pair in file.pairs} == {
        LINEAR: (2.0, 0.5, "metadata"),
        CONV: (16.0, 4.0, "metadata"),
    }


def test_each_component_has_its_own_configuration(tmp_path: Path) -> None:
    tensors = {**diffusers_tensors(), **diffusers_tensors(prefix="text_encoder.")}
    said = {"unet.r": 4, "unet.lora_alpha": 2, "text_encoder.r": 4, "text_encoder.lora_alpha": 8}
    header = {"lora_adapter_metadata": json.dumps(said)}
    file = read_lora(write(tmp_path / "a.safetensors", tensors, header))
    assert {(pair.component, pair.scale) for pair in file.pairs} == {("unet", 0.5), ("text_encoder", 2.0)}


def test_rslora_divides_by_the_root(tmp_path: Path) -> None:
    header = adapter(r=4, lora_alpha=3, use_rslora=True)
    file = read_lora(write(tmp_path / "a.safetensors", diffusers_tensors(), header))
    assert [pair.scale for pair in file.pairs] == [1.5, 1.5]


def test_kohya(tmp_path: Path) -> None:
    file = read_lora(write(tmp_path / "a.safetensors", kohya_tensors(), {"ss_network_dim": "4"}))
    assert file.layout == "kohya"
    assert file.metadata["ss_network_dim"] == "4"
    assert {(pair.alpha, pair.alpha_origin, pair.scale) for pair in file.pairs} == {(2.0, "stored", 0.5)}
    assert [pair.matches(name) for pair in file.pairs for name in (LINEAR, CONV)].count(True) == 2
    assumed = read_lora(write(tmp_path / "b.safetensors", kohya_tensors(alpha=None)))
    assert {(pair.alpha, pair.alpha_origin) for pair in assumed.pairs} == {(4.0, "assumed")}


def test_peft_has_its_configuration_beside(tmp_path: Path) -> None:
    write(tmp_path / "adapter_model.safetensors", diffusers_tensors(prefix="base_model.model."))
    assert {pair.alpha_origin for pair in read_lora(tmp_path).pairs} == {"assumed"}
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 6}), encoding="utf-8")
    assert {(pair.alpha, pair.scale) for pair in read_lora(tmp_path).pairs} == {(6.0, 1.5)}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(tmp_path: Path, dtype: torch.dtype) -> None:
    from safetensors.torch import save_file

    tensors = {name: torch.from_numpy(array).to(dtype) for name, array in diffusers_tensors().items()}
    save_file(tensors, tmp_path / "a.safetensors")
    pair = read_lora(tmp_path / "a.safetensors").pairs[0]
    assert pair.dtype == {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float64: "fp64"}[dtype]
    np.testing.assert_array_equal(pair.down, tensors[pair.down_name].float().numpy())


def changed(**changes: object) -> Tensors:
    """The diffusers file with some tensors changed or, with None, left out."""
    tensors = diffusers_tensors()
    for name, value in changes.items():
        key = {"a": A, "b": B}.get(name, name)
        if value is None:
            del tensors[key]
        else:
            tensors[key] = np.asarray(value)
    return tensors


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        (changed(a=None), "lacks its down half"),
        (changed(b=None), "lacks its up half"),
        (changed(a=np.zeros((3, 10), np.float32)), "ranks of its halves differ: down [3, 10], up [12, 4]"),
        (changed(a=np.full((4, 10), np.nan, np.float32)), "40 of 40 values of its down half are not finite"),
        (changed(b=np.full((12, 4), np.inf, np.float32)), "48 of 48 values of its up half are not finite"),
        (changed(a=np.zeros((4, 10), np.int32)), "stored as I32"),
        (changed(a=np.zeros((0, 10), np.float32), b=np.zeros((12, 0), np.float32)), "no linear layer or convolution"),
        (changed(a=np.zeros(4, np.float32)), "no linear layer or convolution"),
        (changed(b=np.ones((9, 4, 3, 3), np.float32), a=np.ones((4, 9, 3, 3), np.float32)), "up half with a kernel"),
        (changed(**{f"unet.{LINEAR}.alpha": np.zeros(2, np.float32)}), "2 values instead of one"),
        (changed(**{f"unet.{LINEAR}.alpha": np.float32(math.nan)}), "alpha nan"),
        (changed(**{f"unet.{LINEAR}.alpha": np.float32(0)}), "alpha 0"),
        (changed(**{f"unet.{LINEAR}.lora_magnitude_vector": np.ones(12, np.float32)}), "lora_magnitude_vector"),
    ],
)  # fmt: skip
def test_damage_is_refused(tmp_path: Path, tensors: Tensors, says: str) -> None:
    path = write(tmp_path / "a.safetensors", tensors)
    with pytest.raises(ModelError) as error:
        read_lora(path)
    assert says in str(error.value)
    survey(path)  # to be looked at all the same


def test_all_damage_at_once(tmp_path: Path) -> None:
    tensors = changed(b=None, **{f"unet.{CONV}.lora_A.weight": np.full((4, 6, 3, 3), np.nan, np.float32)})
    with pytest.raises(ModelError) as error:
        read_lora(write(tmp_path / "a.safetensors", tensors))
    assert "lacks its up half" in str(error.value)
    assert "not finite" in str(error.value)


def header_of(text: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text)) + text + data


def entry(start: int, end: int, size: int = 4) -> str:
    return json.dumps({"dtype": "F32", "shape": [size // 4], "data_offsets": [start, end]})


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"abc", "not a whole safetensors file"),
        (b"\xff" * 64, "not a whole safetensors file"),
        (header_of(b"not json"), "not a whole safetensors file"),
        (header_of(b"[" * 100_000), "not a whole safetensors file"),
        (struct.pack("<Q", 2**62) + b"{}", "not a whole safetensors file"),
        (header_of(f'{{"x.lora_A.weight":{entry(0, 4)}}}'.encode()), "not a whole safetensors file"),
        (
            header_of(f'{{"x.lora_A.weight":{entry(0, 4)},"x.lora_B.weight":{entry(2, 6)}}}'.encode(), b"\0" * 6),
            "not a whole safetensors file",
        ),
        (header_of(b'{"x":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}', b"\0" * 4), "not a whole safetensors"),
        (header_of(b"{}"), "holds no LoRA: 0 tensors"),
        (pickle.dumps({"a": 1}), "pickled"),
        (b"PK\x03\x04" + b"\0" * 60, "a pickled PyTorch file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html></html>", "a web page"),
    ],
)
def test_no_safetensors_file(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=says):
        read_lora(path)


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "sprung",))  # type: ignore[return-value]

    torch.save({"a": Trap()}, tmp_path / "pytorch_lora_weights.bin")
    with pytest.raises(ModelError, match="pickled"):
        read_lora(tmp_path / "pytorch_lora_weights.bin")
    with pytest.raises(ModelError, match="holds no pytorch_lora_weights") as error:
        read_lora(tmp_path)
    assert "pytorch_lora_weights.bin" in str(error.value.hint)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"conv_in.weight": np.zeros(3, np.float32)}, "holds no LoRA: 1 tensors, such as conv_in.weight"),
        ({"lora_unet_x.hada_w1_a": np.zeros((3, 3), np.float32)}, "is a LoHa"),
        ({**diffusers_tensors(), **kohya_tensors()}, "mixes the layouts diffusers and kohya"),
    ],
)
def test_no_lora(tmp_path: Path, tensors: Tensors, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        read_lora(write(tmp_path / "a.safetensors", tensors))


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        read_lora(tmp_path / "none.safetensors")
    (tmp_path / "link.safetensors").symlink_to("/nowhere")
    with pytest.raises(ModelError, match="no such file"):
        read_lora(tmp_path / "link.safetensors")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_refused_or_read(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Whatever bytes are changed or cut off."""
    folder = tmp_path_factory.mktemp("damaged")
    content = bytearray(write(folder / "a.safetensors", kohya_tensors(rank=1), adapter(r=1)).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, min(len(content) - 1, 900)))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content))) :]
    (folder / "b.safetensors").write_bytes(content)
    with contextlib.suppress(ModelError):
        read_lora(folder / "b.safetensors")
