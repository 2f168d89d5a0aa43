"""clip_skip, and SDXL's two text encoders, bit for bit against the pipelines of diffusers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from trainscope.errors import ModelError
from trainscope.trainer.models.load import Components
from trainscope.trainer.models.pipelines import build_pipeline
from trainscope.trainer.models.quiet import quiet_libraries
from trainscope.trainer.models.text import encode_text

CAPTIONS = ["a red circle on a white background!", "", "blue"]


@pytest.mark.parametrize("fixture", ["sd15", "sd2", "sdxl"])
@pytest.mark.parametrize("clip_skip", [1, 2])
@torch.no_grad()
def test_layers_are_those_of_diffusers(
    fixture: str, clip_skip: int, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    components: Components = request.getfixturevalue(fixture)
    if components.sdxl and clip_skip == 2:
        pytest.skip("two layers: there is none below")
    with quiet_libraries():
        pipeline: Any = build_pipeline(components)
        if not hasattr(components.text_encoder, "text_model"):  # flattened in transformers 5.6, diffusers still asks
            monkeypatch.setattr(type(components.text_encoder), "text_model", property(lambda self: self), raising=False)
        settings = {"clip_skip": clip_skip - 1} if clip_skip > 1 else {}  # None is the one that it was trained with
        encoded = pipeline.encode_prompt(
            CAPTIONS, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False, **settings
        )
    monkeypatch.undo()
    ours = encode_text(components, CAPTIONS, clip_skip=clip_skip)
    assert torch.equal(ours.hidden, encoded[0])
    if components.sdxl:
        assert ours.pooled is not None
        assert torch.equal(ours.pooled, encoded[2])


@torch.no_grad()
def test_a_skipped_layer_of_sdxl_is_that_of_diffusers(sdxl: Components) -> None:
    """With encoders of four layers: the tiny ones' two leave none to skip."""
    from dataclasses import replace

    torch.manual_seed(0)
    deeper = tuple(
        type(encoder)(type(encoder.config)(**{**encoder.config.to_dict(), "num_hidden_layers": 4})).eval()
        for encoder in sdxl.text_encoders
    )
    components = replace(sdxl, text_encoders=deeper)
    with quiet_libraries():
        pipeline: Any = build_pipeline(components)
        for clip_skip in (2, 3):
            encoded = pipeline.encode_prompt(
                CAPTIONS, device="cpu", do_classifier_free_guidance=False, clip_skip=clip_skip - 1
            )
            assert torch.equal(encode_text(components, CAPTIONS, clip_skip=clip_skip).hidden, encoded[0])


@pytest.mark.parametrize(("fixture", "clip_skip", "most"), [("sd15", 3, 2), ("sdxl", 2, 1)])
def test_more_layers_than_there_are_is_an_error(
    fixture: str, clip_skip: int, most: int, request: pytest.FixtureRequest
) -> None:
    components: Components = request.getfixturevalue(fixture)
    with pytest.raises(ModelError, match=rf"clip_skip = {clip_skip}: .* 2 layers, so that at most {most}"):
        encode_text(components, ["a"], clip_skip=clip_skip)
