"""Captions in chunks of 75 tokens, weighted or not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from trainscope.trainer.models.load import Components, load_components
from trainscope.trainer.models.text import encode_text, tokenize

LONG = " ".join(["red", "circle", "on", "blue"] * 50)  # 200 tokens
CAPTIONS = ["a red circle", "", LONG, " ".join(["red"] * 75), " ".join(["red"] * 76)]


@pytest.mark.parametrize("caption", CAPTIONS)
def test_up_to_75_tokens_are_the_tokenizers_own(
    caption: str, sd15: Components, capfd: pytest.CaptureFixture[str]
) -> None:
    ids = sd15.tokenizer(caption, padding="max_length", max_length=77, truncation=True).input_ids
    capfd.readouterr()  # it warns of long captions
    found = tokenize(sd15.tokenizer, caption)
    assert found.ids == [ids]
    assert found.weights == [[1.0] * 77]
    assert found.count == len(caption.split())
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("tokens", [75, 150, 225])
def test_chunks_have_start_and_end_each(tokens: int, sd15: Components) -> None:
    tokenizer = sd15.tokenizer
    for caption in CAPTIONS:
        found = tokenize(tokenizer, caption, max_tokens=tokens)
        assert len(found.ids) == tokens // 75
        assert all(len(chunk) == 77 and chunk[0] == tokenizer.bos_token_id for chunk in found.ids)
        inside = [chunk[1 : chunk.index(tokenizer.eos_token_id)] for chunk in found.ids]
        plain = tokenizer(caption, add_special_tokens=False).input_ids
        assert [token for chunk in inside for token in chunk] == plain[:tokens]
        assert found.count == len(plain)


def test_each_token_has_the_weight_of_its_text(sd15: Components) -> None:
    tokenizer = sd15.tokenizer
    found = tokenize(tokenizer, "a (red circle:1.5) [on] blue", weighted=True)
    assert found.ids == tokenize(tokenizer, "a red circle on blue").ids
    assert found.weights[0][:7] == [1, 1, 1.5, 1.5, pytest.approx(1 / 1.1), 1, 1]
    assert set(found.weights[0][7:]) == {1.0}
    assert found.count == 5
    split = tokenize(tokenizer, f"({LONG}:2)", max_tokens=225, weighted=True)
    assert [sum(weight == 2 for weight in chunk) for chunk in split.weights] == [75, 75, 50]
    assert tokenize(tokenizer, "a (red:1.5)").count > 2  # not asked for: brackets are letters like others


def hidden(components: Components, captions: Sequence[str], **how: object) -> Tensor:
    with torch.no_grad():
        return encode_text(components, captions, **how).hidden  # type: ignore[arg-type]


def test_embeddings_of_chunks_are_joined(sd15: Components) -> None:
    """Each chunk is what a caption of its own would be."""
    words = LONG.split()
    parts = [" ".join(words[start : start + 75]) for start in (0, 75, 150)]
    joined = torch.cat(list(hidden(sd15, parts)))
    found = hidden(sd15, [LONG, "a red circle"], max_tokens=225)
    assert found.shape == (2, 231, 32)
    assert torch.allclose(found[0], joined, atol=1e-5)
    short = torch.cat(list(hidden(sd15, ["a red circle", "", ""])))
    assert torch.allclose(found[1], short, atol=1e-5)
    assert torch.equal(hidden(sd15, [LONG]), hidden(sd15, [parts[0]]))  # cut at 75


def test_emphasis_changes_its_caption_only(sd15: Components) -> None:
    plain = hidden(sd15, ["a red circle", "a blue star"])
    weighted = hidden(sd15, ["a (red:1.5) circle", "a blue star"], weighted=True)
    assert torch.equal(weighted[1], plain[1])
    ratio = weighted[0] / plain[0]
    inside = torch.zeros(77, dtype=torch.bool)
    inside[2] = True
    assert torch.allclose(ratio[inside] / ratio[~inside].mean(), torch.tensor(1.5), rtol=1e-3)
    assert torch.allclose(weighted[0].mean(), plain[0].mean(), atol=1e-6)


def test_the_pooled_embedding_is_the_first_chunks() -> None:
    sdxl = load_components("tiny:sdxl", base_dir=Path())
    with torch.no_grad():
        words = LONG.split()
        long = encode_text(sdxl, [LONG, "a red circle"], max_tokens=150)
        first = encode_text(sdxl, [" ".join(words[:75]), "a red circle"])
        weighted = encode_text(sdxl, ["a (red:1.5) circle"], weighted=True)
    assert long.pooled is not None
    assert first.pooled is not None
    assert weighted.pooled is not None
    assert long.hidden.shape[1] == 154
    assert torch.allclose(long.pooled, first.pooled, atol=1e-5)
    assert torch.allclose(weighted.pooled[0], first.pooled[1], atol=1e-5)  # as user interfaces have it
    assert not torch.allclose(weighted.hidden[0], first.hidden[1], atol=1e-3)
