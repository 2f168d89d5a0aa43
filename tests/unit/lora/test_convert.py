"""`convert`: the same bits under other names, the same alphas in another place."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from tests.unit.lora.loras import CONV, LINEAR, Tensors, adapter, diffusers_tensors, factors, kohya_tensors, write
from trainscope.errors import ModelError
from trainscope.lora.contradictions import contradictions
from trainscope.lora.convert import Target, convert, is_sdxl
from trainscope.lora.file import LoraFile, read_lora
from trainscope.lora.kohya import dotted
from trainscope.lora.tensors import encode
from trainscope.lora.write import serialized, write_lora

XL = "down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_k"
KOHYA_XL = "lora_unet_input_blocks_4_1_transformer_blocks_1_attn2_to_k"


def converted(source: Path, to: Target, out: Path) -> LoraFile:
    made = convert(read_lora(source), to)
    write_lora(out, made.tensors, made.metadata)
    return read_lora(out)


def bits(file: LoraFile) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {
        name: (tensor.dtype, tuple(tensor.shape), file.tensors.raw(name))
        for name, tensor in file.tensors.tensors.items()
    }


def in_dtype(path: Path, tensors: Tensors, dtype: str, metadata: Mapping[str, str] | None = None) -> Path:
    """A file with all tensors in `dtype`, bfloat16 included, which numpy does not have."""
    from trainscope.lora.tensors import NewTensor

    stored = {name: NewTensor(dtype, array.shape, encode(array, dtype)) for name, array in tensors.items()}  # type: ignore[arg-type]
    path.write_bytes(b"".join(serialized(stored, metadata or {})))
    return path


def text(prefix: str, component: str = "") -> Tensors:
    """A text encoder's projection [6, 6], of rank 2."""
    down, up = factors(2, (6,), (6,), seed=5)
    halves = ("lora_down", "lora_up") if prefix.startswith("lora_te") else ("lora_A", "lora_B")
    return {f"{prefix}.{halves[0]}.weight": down, f"{prefix}.{halves[1]}.weight": up}


TE = "text_model.encoder.layers.0.self_attn.q_proj"


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("alpha", [2.0, 1.1])
def test_from_kohya_and_back(tmp_path: Path, dtype: str, alpha: float) -> None:
    """1.1 has another value in every dtype; whichever it is, it stays."""
    tensors = {**kohya_tensors(rank=3, alpha=alpha), **text("lora_te_" + TE.replace(".", "_"))}
    tensors["lora_te_" + TE.replace(".", "_") + ".alpha"] = np.array(alpha / 2, np.float32)
    told = {"ss_base_model_version": "sd_v1", "ss_steps": "9", "ss_network_dropout": "0.25"}
    source = in_dtype(tmp_path / "a.safetensors", tensors, dtype, told)
    there = converted(source, "diffusers", tmp_path / "b.safetensors")
    assert {pair.key for pair in there.pairs} == {f"unet.{LINEAR}", f"unet.{CONV}", f"text_encoder.{TE}"}
    assert all(name.endswith((".lora_A.weight", ".lora_B.weight")) for name in there.tensors.tensors)
    assert (there.metadata["ss_steps"], there.metadata["trainscope_converted"]) == ("9", "kohya to diffusers")
    said = json.loads(there.metadata["lora_adapter_metadata"])
    assert said["unet.lora_dropout"] == said["text_encoder.lora_dropout"] == 0.25
    assert not contradictions(there)
    before = {dotted(pair.module): pair for pair in read_lora(source).pairs}
    for pair in there.pairs:
        assert (pair.alpha, pair.scale) == (before[pair.module].alpha, before[pair.module].scale)
        assert pair.alpha_origin == "metadata"
    back = converted(there.path, "kohya", tmp_path / "c.safetensors")
    assert bits(back) == bits(read_lora(source))
    assert back.metadata["ss_network_dropout"] == "0.25"
    assert "lora_adapter_metadata" not in back.metadata
    assert not contradictions(back)


def test_from_diffusers_and_back(tmp_path: Path) -> None:
    header = {
        **adapter(r=4, lora_alpha=2, lora_dropout=0.1, rank_pattern={CONV: 3}, alpha_pattern={CONV: 2}),
        "trainscope_step": "9",
    }
    tensors = {name: array for name, array in diffusers_tensors().items() if LINEAR in name}
    tensors |= {name: array for name, array in diffusers_tensors(rank=3).items() if CONV in name}
    source = write(tmp_path / "a.safetensors", tensors, header)
    there = converted(source, "kohya", tmp_path / "b.safetensors")
    metadata = there.metadata
    assert (metadata["ss_network_module"], metadata["ss_network_dim"], metadata["ss_network_alpha"]) == (
        "networks.lora", "4", "2",
    )  # fmt: skip
    assert json.loads(metadata["ss_network_args"]) == {"conv_dim": "3", "conv_alpha": "2"}
    assert (metadata["ss_network_dropout"], metadata["trainscope_step"]) == ("0.1", "9")
    assert len(metadata["sshs_model_hash"]) == 64
    assert {pair.alpha_origin for pair in there.pairs} == {"stored"}
    back = converted(there.path, "diffusers", tmp_path / "c.safetensors")
    assert bits(back) == bits(read_lora(source))
    assert {pair.module: (pair.rank, pair.alpha, pair.scale) for pair in back.pairs} == {
        pair.module: (pair.rank, pair.alpha, pair.scale) for pair in read_lora(source).pairs
    }
    assert "sshs_model_hash" not in back.metadata
    assert back.metadata["trainscope_converted"] == "diffusers to kohya; kohya to diffusers"


def test_sdxl_has_other_names_in_kohya(tmp_path: Path) -> None:
    tensors: Tensors = {}
    for prefix in (f"unet.{XL}", f"text_encoder.{TE}", f"text_encoder_2.{TE}"):
        tensors |= text(prefix)
    source = write(tmp_path / "a.safetensors", tensors)
    there = converted(source, "kohya", tmp_path / "b.safetensors")
    te = TE.replace(".", "_")
    assert {pair.key for pair in there.pairs} == {KOHYA_XL, f"lora_te1_{te}", f"lora_te2_{te}"}
    assert bits(converted(there.path, "diffusers", tmp_path / "c.safetensors")) == bits(read_lora(source))


def test_sdxl_in_diffusers_names_is_renamed_too(tmp_path: Path) -> None:
    """Some trainers write kohya's layout with diffusers' paths."""
    stem = "lora_unet_" + XL.replace(".", "_")
    tensors = {name.replace("lora_te_x", stem): array for name, array in text("lora_te_x").items()}
    source = write(tmp_path / "a.safetensors", tensors)
    assert [pair.key for pair in converted(source, "kohya", tmp_path / "b.safetensors").pairs] == [KOHYA_XL]


def test_where_no_alpha_is_known_none_is_made_up(tmp_path: Path) -> None:
    source = write(tmp_path / "a.safetensors", kohya_tensors(alpha=None))
    there = converted(source, "diffusers", tmp_path / "b.safetensors")
    assert "lora_adapter_metadata" not in there.metadata
    assert {pair.alpha_origin for pair in there.pairs} == {"assumed"}
    assert bits(converted(there.path, "kohya", tmp_path / "c.safetensors")) == bits(read_lora(source))


def test_the_root_of_rslora_goes_into_alpha(tmp_path: Path) -> None:
    source = write(tmp_path / "a.safetensors", diffusers_tensors(), adapter(r=4, lora_alpha=3, use_rslora=True))
    there = converted(source, "kohya", tmp_path / "b.safetensors")
    assert {(pair.alpha, pair.scale) for pair in there.pairs} == {(6.0, 1.5)}


def test_older_names_of_diffusers_and_peft(tmp_path: Path) -> None:
    down, up = factors(2, (6,), (6,))
    old = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora"
    source = write(tmp_path / "a.safetensors", {f"{old}.down.weight": down, f"{old}.up.weight": up})
    module = "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0"
    assert [pair.key for pair in converted(source, "diffusers", tmp_path / "b.safetensors").pairs] == [f"unet.{module}"]
    source = write(tmp_path / "peft" / "adapter_model.safetensors", diffusers_tensors(prefix="base_model.model."))
    (tmp_path / "peft" / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 6}), encoding="utf-8")
    there = converted(source, "kohya", tmp_path / "c.safetensors")
    assert {pair.alpha for pair in there.pairs} == {6.0}


def test_other_tensors_are_kept_and_said(tmp_path: Path) -> None:
    other = {"bundle_emb.x.string_to_param.*": np.ones((2, 3), np.float16)}
    file = read_lora(write(tmp_path / "a.safetensors", {**kohya_tensors(), **other}))
    made = convert(file, "diffusers")
    assert made.tensors["bundle_emb.x.string_to_param.*"].content == np.ones((2, 3), np.float16).tobytes()
    assert "1 tensors that belong to no pair are copied as they were" in made.notes


def test_what_diffusers_would_misread_is_said(tmp_path: Path) -> None:
    tensors = diffusers_tensors()
    for number in (1, 2):
        tensors |= {
            name.replace(CONV, f"mid_block.resnets.{number - 1}.conv1"): array
            for name, array in diffusers_tensors().items()
            if CONV in name
        }
    header = adapter(r=4, lora_alpha=2, alpha_pattern={"conv1": 8})
    [note, *_] = convert(read_lora(write(tmp_path / "a.safetensors", tensors, header)), "kohya").notes
    assert note.startswith("diffusers gives all attention projections of unet the most frequent alpha, 8")


@pytest.mark.parametrize(
    ("tensors", "metadata", "to", "says"),
    [
        (kohya_tensors(), {"ss_network_dim": "16"}, "diffusers", "ss_network_dim is 16, but 1 of 1 modules"),
        (diffusers_tensors(), adapter(r=8, lora_alpha=8), "kohya", "says rank 8 where the tensors have 4"),
        (kohya_tensors(), adapter(r=4, lora_alpha=4), "diffusers", "both lora_adapter_metadata and .alpha tensors"),
        (text("lora_te_new_layer"), None, "diffusers", "lora_te_new_layer is no module of Stable Diffusion"),
        (text("unet.down_blocks.0.new_1"), None, "kohya", "is no module of Stable Diffusion that has a name"),
        (text("transformer.x"), None, "kohya", "transformer.x is no module"),
        (kohya_tensors(), None, "kohya", "is in the kohya layout already"),
        (diffusers_tensors(), None, "diffusers", "is in the diffusers layout already"),
        (
            text("lora_te_" + TE.replace(".", "_")) | text("lora_te1_" + TE.replace(".", "_")),
            None, "diffusers", f"several pairs are of one module, text_encoder.{TE}",
        ),
    ],
)  # fmt: skip
def test_what_is_refused(
    tmp_path: Path, tensors: Tensors, metadata: dict[str, str] | None, to: Target, says: str
) -> None:
    with pytest.raises(ModelError) as error:
        convert(read_lora(write(tmp_path / "a.safetensors", tensors, metadata)), to)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("tensors", "metadata", "sdxl"),
    [
        (text(f"unet.{LINEAR}"), {"ss_base_model_version": "sdxl_base_v1-0"}, True),
        (text(f"unet.{LINEAR}"), {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}, True),
        (text(f"unet.{XL}"), {"ss_base_model_version": "sd_v1"}, False),
        (text(f"unet.{XL}"), None, True),
        (text(KOHYA_XL.replace("unet", "te")) | text("lora_te2_x"), None, True),
        (text("unet.down_blocks.3.resnets.0.conv1"), None, False),
        (text(f"unet.{LINEAR}"), None, None),
    ],
)
def test_which_model_it_is_of(
    tmp_path: Path, tensors: Tensors, metadata: dict[str, str] | None, sdxl: bool | None
) -> None:
    assert is_sdxl(read_lora(write(tmp_path / "a.safetensors", tensors, metadata))) is sdxl


@pytest.mark.parametrize(("width", "sdxl"), [(768, False), (1024, False), (2048, True), (6, None)])
def test_the_text_that_is_attended_to_tells_the_model(tmp_path: Path, width: int, sdxl: bool | None) -> None:
    module = LINEAR.replace("attn1.to_q", "attn2.to_k")
    down, up = factors(2, (6,), (width,))
    tensors: Tensors = {f"unet.{module}.lora_A.weight": down, f"unet.{module}.lora_B.weight": up}
    assert is_sdxl(read_lora(write(tmp_path / "a.safetensors", tensors))) is sdxl
