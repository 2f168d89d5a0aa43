"""The bytes of tensors, against torch, which reads and rounds them by other code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from tests.unit.lora.loras import kohya_tensors, write
from trainscope.errors import ModelError
from trainscope.lora.tensors import NewTensor, decode, encode, open_tensors
from trainscope.lora.write import serialized

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@given(values=st.lists(st.floats(width=32), min_size=1, max_size=20), dtype=st.sampled_from(sorted(DTYPES)))
def test_rounding_is_torchs(values: list[float], dtype: str) -> None:
    array = np.array(values, dtype=np.float32)
    ours = decode(encode(array, dtype), dtype)
    theirs = torch.from_numpy(array).to(DTYPES[dtype]).float().numpy()
    np.testing.assert_array_equal(ours, theirs)
    finite = ~np.isnan(ours)
    np.testing.assert_array_equal(np.signbit(ours)[finite], np.signbit(theirs)[finite])


def test_every_tie_of_bfloat16_goes_to_even() -> None:
    ties = (np.arange(2**16, dtype=np.uint32) << 16 | 0x8000).view(np.float32)
    ours = decode(encode(ties, "BF16"), "BF16")
    np.testing.assert_array_equal(ours, torch.from_numpy(ties).bfloat16().float().numpy())


@pytest.mark.parametrize("dtype", [torch.float64, *DTYPES.values()])
def test_what_torch_writes_is_read(tmp_path: Path, dtype: torch.dtype) -> None:
    tensor = torch.randn(3, 5, dtype=torch.float64).to(dtype)
    save_file({"a": tensor, "b": tensor.T.contiguous()}, tmp_path / "a.safetensors", metadata={"said": "ü"})
    found = open_tensors(tmp_path / "a.safetensors")
    assert found.metadata == {"said": "ü"}
    np.testing.assert_array_equal(found.array("a"), tensor.float().numpy())
    np.testing.assert_array_equal(found.array("b"), tensor.float().numpy().T)


def test_what_is_written_torch_reads(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    tensors = {dtype: NewTensor(dtype, (3, 5), encode(values, dtype)) for dtype in DTYPES}
    tensors["scalar"] = NewTensor("F32", (), encode(np.array(2.5), "F32"))
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"".join(serialized(tensors, {"said": 'ü "'})))
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"said": 'ü "'}
        assert file.get_tensor("scalar").item() == 2.5
        for name, dtype in DTYPES.items():
            assert torch.equal(file.get_tensor(name), torch.from_numpy(values).to(dtype))


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", kohya_tensors())
    found = open_tensors(path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ModelError, match="ends within"):
        [found.array(name) for name in found.tensors]
