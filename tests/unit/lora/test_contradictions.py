"""Where metadata and tensors do not agree, and where they only seem not to."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.unit.lora.loras import CONV, LINEAR, Tensors, adapter, diffusers_tensors, factors, kohya_tensors, write
from trainscope.lora.contradictions import contradictions
from trainscope.lora.examine import examine, pair_norm
from trainscope.lora.file import survey

CONV_STEM = f"lora_unet_{CONV.replace('.', '_')}"


def found(tmp_path: Path, tensors: Tensors, metadata: dict[str, str]) -> str:
    return "\n".join(contradictions(survey(write(tmp_path / "a.safetensors", tensors, metadata)).file))


CONV_ARGS = {"ss_network_args": '{"conv_dim": "4", "conv_alpha": "2"}'}


@pytest.mark.parametrize(
    ("tensors", "metadata"),
    [
        (kohya_tensors(), {"ss_network_dim": "4", "ss_network_alpha": "2.0", **CONV_ARGS}),
        (kohya_tensors(), {"ss_network_dim": "Dynamic", "ss_network_alpha": "None"}),
        (kohya_tensors(alpha=1.1), {"ss_network_alpha": "1.1015625"}),  # 1.1 in bfloat16
        (kohya_tensors(), {"ss_network_dim": "16", "ss_network_args": '{"block_dims": "4,4"}'}),
        ({**kohya_tensors(), f"{CONV_STEM}.alpha": np.array(1, np.float32)}, {"ss_network_alpha": "2"}),
        (diffusers_tensors(), adapter(r=4, lora_alpha=7)),
        (diffusers_tensors(), adapter(r=8, lora_alpha=7, rank_pattern={LINEAR: 4, "conv1": 4})),
    ],
)
def test_agreement(tmp_path: Path, tensors: Tensors, metadata: dict[str, str]) -> None:
    assert not found(tmp_path, tensors, metadata)


@pytest.mark.parametrize(
    ("tensors", "metadata", "says"),
    [
        (kohya_tensors(), {"ss_network_dim": "16"}, "ss_network_dim is 16, but 1 of 1 modules have rank 4"),
        (kohya_tensors(), {"ss_network_alpha": "1"}, "ss_network_alpha is 1, but 1 of 1 modules have alpha 2"),
        (kohya_tensors(), {"ss_network_args": '{"conv_dim": 8}'}, "conv_dim is 8, but 1 of 1 modules have rank 4"),
        (kohya_tensors(), {"ss_network_args": "["}, "ss_network_args is not a JSON object"),
        (kohya_tensors(), adapter(r=4), "diffusers refuses the file"),
        (diffusers_tensors(), adapter(r=8, lora_alpha=8), "says rank 8 where the tensors have 4, in 2 of 2 modules"),
        (diffusers_tensors(), adapter(r=4, lora_alpha="x"), "lora_alpha is 'x', not a number"),
        (diffusers_tensors(), adapter(r=4, lora_alpha=4, alpha_pattern=[1]), "alpha_pattern is [1], not a table"),
        (diffusers_tensors(), {"lora_adapter_metadata": "{"}, "not a JSON object: diffusers cannot load the file"),
        (diffusers_tensors(), {"lora_adapter_metadata": "[" * 9999}, "not a JSON object"),
        (diffusers_tensors(), adapter(r=4, lora_alpha=4, alpha_pattern={"(a+)+b": 2}), "is not followed: '(a+)+b'"),
        (diffusers_tensors(), adapter(r=4, lora_alpha=4, alpha_pattern={"(": 2}), "is not followed: '('"),
        (
            diffusers_tensors(),
            {"lora_adapter_metadata": json.dumps({"text_encoder.r": 4})},
            "says nothing of unet: diffusers takes rank and alpha 8 there",
        ),
        (
            {**diffusers_tensors(), f"unet.{LINEAR}.alpha": np.array(1, np.float32)},
            {},
            f"for {LINEAR} they take 4, others 1",
        ),
    ],
)
def test_contradiction(tmp_path: Path, tensors: Tensors, metadata: dict[str, str], says: str) -> None:
    assert says in found(tmp_path, tensors, metadata)


def test_alphas_that_diffusers_would_mix_up(tmp_path: Path) -> None:
    tensors: Tensors = {}
    for number, alpha in enumerate((4.0, 4.0, 1.0)):
        a, b = factors(4, (8,), (8,), number)
        stem = f"lora_unet_mid_block_attentions_{number}_attn1_to_q"
        tensors |= {f"{stem}.lora_down.weight": a, f"{stem}.lora_up.weight": b, f"{stem}.alpha": np.float32(alpha)}
    said = found(tmp_path, tensors, {})
    assert "most frequent alpha, 4: 1 have another" in said
    assert "attentions_2_attn1_to_q with 1" in said
    del tensors["lora_unet_mid_block_attentions_1_attn1_to_q.alpha"]
    assert "some modules of unet have no alpha" in found(tmp_path, tensors, {})


def test_the_norm_is_that_of_the_product(tmp_path: Path) -> None:
    file = survey(write(tmp_path / "a.safetensors", kohya_tensors(alpha=3.0))).file
    for pair in file.pairs:
        product = pair.up.reshape(len(pair.up), -1).astype(float) @ pair.down.reshape(4, -1).astype(float)
        assert pair_norm(pair) == pytest.approx(0.75 * np.linalg.norm(product), rel=1e-12)


def test_untrained_and_not_finite(tmp_path: Path) -> None:
    tensors = kohya_tensors()
    conv = f"{CONV_STEM}.lora_up.weight"
    tensors[conv] = np.zeros_like(tensors[conv])
    examined = examine(survey(write(tmp_path / "a.safetensors", tensors)))
    assert f"1 of 2 pairs are untrained: up is zero, such as {CONV_STEM}" in examined.problems
    assert [(block.name, block.untrained) for block in examined.blocks] == [("down_blocks.0", 1)]
    tensors[conv][0, 0] = np.nan
    examined = examine(survey(write(tmp_path / "b.safetensors", tensors)))
    assert (examined.norm, examined.blocks[0].norm, examined.blocks[0].not_finite) == (None, None, 1)
    json.dumps(examined.as_json(), allow_nan=False)
    empty = {name: np.zeros_like(array) if "lora_up" in name else array for name, array in tensors.items()}
    examined = examine(survey(write(tmp_path / "c.safetensors", empty)))
    assert any(sentence.startswith("untrained: every up half is zero") for sentence in examined.problems)
