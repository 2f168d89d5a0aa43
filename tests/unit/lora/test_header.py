"""What a resized file says of itself, and that it never takes another file's place."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest

from tests.unit.lora.loras import CONV, LINEAR, adapter, diffusers_tensors, kohya_tensors, write
from trainscope.errors import ModelError
from trainscope.lora.file import LoraFile, read_lora
from trainscope.lora.resize import Target, resize
from trainscope.lora.write import write_resized


def resized(source: Path, out: Path, target: Target) -> LoraFile:
    file = read_lora(source)
    write_resized(file, resize(file, target), out, "a test")
    return read_lora(out)


def test_kohya(tmp_path: Path) -> None:
    said = {
        "ss_network_dim": "4", "ss_network_alpha": "2.0", "ss_training_comment": "mine", "ss_steps": "100",
        "ss_network_args": '{"conv_dim": "4", "conv_alpha": "2", "dropout": "0.1"}',
        "sshs_model_hash": "old", "sshs_legacy_hash": "old",
    }  # fmt: skip
    tensors = {**kohya_tensors(), "bundle_emb.x.string_to_param.*": np.ones((2, 3), np.float16)}
    source = write(tmp_path / "a.safetensors", tensors, said)
    file = resized(source, tmp_path / "b.safetensors", Target(rank=2))
    metadata = file.metadata
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"], metadata["ss_steps"]) == ("2", "1", "100")
    assert metadata["ss_training_comment"] == "dimension is resized from 4 to 2; mine"
    assert json.loads(metadata["ss_network_args"]) == {"conv_dim": "2", "conv_alpha": "1", "dropout": "0.1"}
    assert metadata["trainscope_resized"] == "a test"
    content = file.path.read_bytes()
    data = content[8 + int.from_bytes(content[:8], "little") :]
    assert metadata["sshs_model_hash"] == hashlib.sha256(data).hexdigest()
    assert "sshs_legacy_hash" not in metadata
    assert file.rest == ["bundle_emb.x.string_to_param.*"]
    np.testing.assert_array_equal(file.tensors.array(file.rest[0]), np.ones((2, 3)))


def test_kohya_with_several_ranks_has_one_alpha(tmp_path: Path) -> None:
    """diffusers gives attention projections the most frequent alpha, so a second one would be lost on them."""
    tensors = kohya_tensors()
    tensors[next(name for name in tensors if "attn1" in name and "lora_up" in name)][:, 1:] *= 1e-3
    source = write(tmp_path / "a.safetensors", tensors, {"ss_network_dim": "4"})
    file = resized(source, tmp_path / "b.safetensors", Target(energy=0.99))
    assert len({pair.rank for pair in file.pairs}) == 2
    assert len({pair.alpha for pair in file.pairs}) == 1
    assert file.metadata["ss_network_dim"] == "Dynamic"
    assert file.metadata["ss_network_alpha"] == f"{file.pairs[0].alpha:g}"


def test_diffusers_with_several_ranks_has_patterns(tmp_path: Path) -> None:
    tensors = diffusers_tensors()
    tensors[f"unet.{LINEAR}.lora_B.weight"][:, 1:] *= 1e-3
    header = {**adapter(r=4, lora_alpha=2, lora_dropout=0.1, target_modules=["to_q", "conv1"]), "trainscope_step": "9"}
    source = write(tmp_path / "a.safetensors", tensors, header)
    file = resized(source, tmp_path / "b.safetensors", Target(energy=0.999))
    said = json.loads(file.metadata["lora_adapter_metadata"])
    assert {pair.module: pair.rank for pair in file.pairs} == {LINEAR: 1, CONV: 4}
    ranks = {said["unet.r"], *said["unet.rank_pattern"].values()}
    assert ranks == {1, 4}
    assert {pair.scale for pair in file.pairs} == {0.5}
    assert (said["unet.lora_dropout"], said["unet.target_modules"]) == (0.1, ["to_q", "conv1"])
    assert file.metadata["trainscope_step"] == "9"
    config = file.adapters.configs["unet."]
    assert all(config.rank_of(pair.module) == pair.rank for pair in file.pairs)


def test_the_root_of_rslora_goes_into_alpha(tmp_path: Path) -> None:
    source = write(tmp_path / "a.safetensors", diffusers_tensors(), adapter(r=4, lora_alpha=3, use_rslora=True))
    file = resized(source, tmp_path / "b.safetensors", Target(rank=2))
    assert {(pair.alpha, pair.scale) for pair in file.pairs} == {(3.0, 1.5)}
    assert json.loads(file.metadata["lora_adapter_metadata"])["unet.use_rslora"] is False


def test_peft_gets_its_configuration(tmp_path: Path) -> None:
    source = write(tmp_path / "old" / "adapter_model.safetensors", diffusers_tensors(prefix="base_model.model."))
    (tmp_path / "old" / "adapter_config.json").write_text(
        json.dumps({"r": 4, "lora_alpha": 6, "base_model_name_or_path": "x"}), encoding="utf-8"
    )
    file = resized(source, tmp_path / "new" / "adapter_model.safetensors", Target(rank=2))
    assert {(pair.alpha, pair.alpha_origin, pair.scale) for pair in file.pairs} == {(3.0, "metadata", 1.5)}
    assert file.adapters.raw["base_model_name_or_path"] == "x"
    with pytest.raises(ModelError, match=r"adapter_config\.json exists"):
        resized(source, tmp_path / "new" / "other.safetensors", Target(rank=2))


def test_nothing_is_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "a.safetensors", kohya_tensors())
    out = tmp_path / "out" / "b.safetensors"
    resized(source, out, Target(rank=2))
    assert [path.name for path in out.parent.iterdir()] == ["b.safetensors"]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(out.stat().st_mode) == 0o666 & ~mask
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "nowhere")
    before = out.read_bytes()
    for taken in (out, source, tmp_path / "link.safetensors"):
        with pytest.raises(ModelError, match="exists, and nothing is written over it"):
            resized(source, taken, Target(rank=1))
    # Another program may be faster, while the file is written.
    monkeypatch.setattr("trainscope.lora.write.check_free", lambda out, layout: None)
    with pytest.raises(ModelError, match="exists, and nothing is written over it"):
        resized(source, out, Target(rank=1))
    monkeypatch.setattr(Path, "hardlink_to", _no_links)
    with pytest.raises(ModelError, match="exists, and nothing is written over it"):
        resized(source, out, Target(rank=1))
    assert out.read_bytes() == before
    assert [path.name for path in out.parent.iterdir()] == ["b.safetensors"]
    resized(source, tmp_path / "out" / "c.safetensors", Target(rank=1))
    assert sorted(path.name for path in out.parent.iterdir()) == ["b.safetensors", "c.safetensors"]


def _no_links(self: Path, target: Path) -> None:
    raise PermissionError(1, "Operation not permitted")
