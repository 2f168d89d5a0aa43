from __future__ import annotations

from pathlib import Path

import pytest

from trainscope.trainer.models.load import Components
from trainscope.trainer.models.pipelines import build_pipeline, pipeline_class
from trainscope.trainer.models.quiet import quiet_libraries
from trainscope.trainer.models.save import usage_hint


@pytest.mark.parametrize(
    ("fixture", "name"),
    [
        ("sd15", "StableDiffusionPipeline"),
        ("inpainting", "StableDiffusionInpaintPipeline"),
        ("sd2", "StableDiffusionPipeline"),
        ("sdxl", "StableDiffusionXLPipeline"),
    ],
)
def test_each_kind_has_its_pipeline(fixture: str, name: str, request: pytest.FixtureRequest) -> None:
    components: Components = request.getfixturevalue(fixture)
    with quiet_libraries():
        scheduler = type(components.noise_scheduler).from_config(components.noise_scheduler.config)
        pipeline = build_pipeline(components, scheduler=scheduler)
    assert type(pipeline).__name__ == name
    assert pipeline.scheduler is scheduler
    assert pipeline.unet is components.unet
    for part, model in components.models.items():
        assert getattr(pipeline, part) is model
    assert pipeline.tokenizer is components.tokenizer


def test_the_names_exist_in_diffusers() -> None:
    import diffusers

    for inpainting in (False, True):
        for sdxl in (False, True):
            assert hasattr(diffusers, pipeline_class(inpainting, sdxl=sdxl))


@pytest.mark.parametrize(
    ("base", "load"),
    [("model.safetensors", "from_single_file"), ("folder", "from_pretrained"), ("a/b", "from_pretrained")],
)
def test_the_hint_loads_the_base_as_what_it_is(base: str, load: str) -> None:
    hint = usage_hint("lora", Path("weights/lora.safetensors"), False, base, sdxl=True)
    assert f'StableDiffusionXLPipeline.{load}("{base}")' in hint
    compile(hint, "hint", "exec")
