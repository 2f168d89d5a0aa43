from __future__ import annotations

import copy
import random
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.unit.trainer.conftest import weights_digest
from trainscope.errors import DataError, ModelError
from trainscope.trainer.models.load import Components, load_components
from trainscope.trainer.models.lora import add_lora
from trainscope.trainer.models.pipelines import build_pipeline
from trainscope.trainer.models.text import encode_text
from trainscope.trainer.sample import image_digest, image_distance, sample_images
from trainscope.trainer.samplers import SAMPLERS, build_sampler, ends_in_noise


def _draw(components: Components, unet: torch.nn.Module | None = None, **changes: object) -> list[Image.Image]:
    arguments: dict[str, object] = {
        "prompts": ["a red circle"], "sampler": "ddim", "steps": 3, "guidance": 3.0, "seed": 1,
        "width": 64, "height": 48,
    }  # fmt: skip
    return sample_images(components, unet or components.unet, **(arguments | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_draws_reproducibly(sd15: Components, sampler: str) -> None:
    first = _draw(sd15, sampler=sampler)
    torch.manual_seed(99)
    second = _draw(sd15, sampler=sampler)
    assert first[0].size == (64, 48)
    assert first[0].mode == "RGB"
    assert image_digest(first[0]) == image_digest(second[0])


SAME = ({"ddim", "euler"}, {"ddpm", "euler-a"})
"""One solver in two sets of variables: they may come to the same pixels."""


def test_different_samplers_give_different_images(sd15: Components) -> None:
    same: dict[str, set[str]] = {}
    for sampler in SAMPLERS:
        [image] = _draw(sd15, sampler=sampler, steps=4, width=32, height=32)
        same.setdefault(image_digest(image), set()).add(sampler)
    assert all(len(samplers) == 1 or samplers in SAME for samplers in same.values())


@pytest.fixture(scope="module")
def sdxl() -> Components:
    return load_components("tiny:sdxl", base_dir=Path())


@pytest.fixture(scope="module")
def sd2() -> Components:
    return load_components("tiny:sd2-v", base_dir=Path(), zero_terminal_snr=True)


@pytest.mark.parametrize("kind", ["sd15", "sdxl", "sd2"])
def test_it_is_what_diffusers_draws(kind: str, request: pytest.FixtureRequest) -> None:
    components: Components = request.getfixturevalue(kind)
    pipeline = build_pipeline(components, scheduler=build_sampler("euler", components.noise_scheduler))
    pipeline.set_progress_bar_config(disable=True)
    [expected] = pipeline(
        "a red circle", negative_prompt="blue", num_inference_steps=3, guidance_scale=3.0, width=64, height=48,
        generator=torch.Generator().manual_seed(1),
    ).images  # fmt: skip
    [drawn] = _draw(components, sampler="euler", negative_prompt="blue")
    assert image_distance(expected, drawn) < 0.003


def test_prompts_are_read_from_the_layer_that_captions_are(sd15: Components) -> None:
    skipping = partial(encode_text, sd15, clip_skip=2)
    given = skipping(["a red circle", "blue"]).hidden
    pipeline = build_pipeline(sd15, scheduler=build_sampler("euler", sd15.noise_scheduler))
    pipeline.set_progress_bar_config(disable=True)
    [expected] = pipeline(
        prompt_embeds=given[:1], negative_prompt_embeds=given[1:], num_inference_steps=3, guidance_scale=3.0,
        width=64, height=48, generator=torch.Generator().manual_seed(1),
    ).images  # fmt: skip
    [drawn] = _draw(sd15, sampler="euler", negative_prompt="blue", encode=skipping)
    assert image_distance(expected, drawn) < 0.003
    assert image_digest(_draw(sd15, sampler="euler", negative_prompt="blue")[0]) != image_digest(drawn)


@pytest.mark.parametrize("sampler", ["ddim", "heun", "dpm++ 2m sde"])
def test_sdxl_listens_to_all_that_it_is_told(sdxl: Components, sampler: str) -> None:
    images = [
        _draw(sdxl, sampler=sampler), _draw(sdxl, sampler=sampler, negative_prompt="blue"),
        _draw(sdxl, sampler=sampler, guidance=1.0), _draw(sdxl, sampler=sampler, prompts=["a blue star"]),
    ]  # fmt: skip
    assert len({image_digest(image[0]) for image in images}) == len(images)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_model_that_begins_in_pure_noise(sd2: Components, sampler: str) -> None:
    assert ends_in_noise(sd2.noise_scheduler)
    pixels = np.asarray(_draw(sd2, sampler=sampler, steps=5, width=32, height=32)[0], dtype=float)
    assert pixels.std() > 2  # neither black nor one grey


def test_long_and_weighted_prompts_are_read_as_captions_are(sd15: Components) -> None:
    long = "a red circle " * 30
    images = [
        _draw(sd15, prompts=[f"{long}and a blue star"], encode=partial(encode_text, sd15, max_tokens=tokens))
        for tokens in (75, 150)
    ]
    assert image_digest(images[0][0]) == image_digest(_draw(sd15, prompts=[long])[0])  # the end was cut off
    assert image_digest(images[0][0]) != image_digest(images[1][0])
    weighted = partial(encode_text, sd15, weighted=True)
    assert image_digest(_draw(sd15, prompts=["a (red:1.5) circle"], encode=weighted)[0]) != image_digest(
        _draw(sd15, prompts=["a red circle"], encode=weighted)[0]
    )


def test_weights_that_are_not_finite_draw_black_without_a_word(
    sd15: Components, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    unet = copy.deepcopy(sd15.unet)
    with torch.no_grad():
        unet.conv_in.weight.fill_(float("nan"))
    assert not np.asarray(_draw(sd15, unet)[0]).any()
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


def test_sampling_leaves_no_trace(
    own_sd15: Components, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    add_lora(own_sd15.unet, rank=2, alpha=2.0, dropout=0.5)
    own_sd15.unet.train()
    own_sd15.unet.mid_block.eval()
    modules = {"unet": own_sd15.unet, "vae": own_sd15.vae, "text_encoder": own_sd15.text_encoder}
    random.seed(3)

    def state() -> tuple[object, ...]:
        return (
            [weights_digest(module) for module in modules.values()],
            [[part.training for part in module.modules()] for module in modules.values()],
            [
                [(p.requires_grad, p.dtype, p.grad is None, id(p)) for p in module.parameters()]
                for module in modules.values()
            ],
            [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules.values()],
            torch.get_rng_state().tolist(),
            random.getstate(),
            np.random.get_state(legacy=False)["state"]["key"].tolist(),
            dict(own_sd15.noise_scheduler.config),
            torch.is_grad_enabled(),
        )

    before = state()
    for sampler in ("euler-a", "ddpm"):
        _draw(own_sd15, sampler=sampler)
    assert state() == before
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


def test_an_error_inside_leaves_no_trace_either(own_sd15: Components, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("out of memory")

    own_sd15.unet.train()
    monkeypatch.setattr(own_sd15.vae, "decode", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        _draw(own_sd15)
    assert own_sd15.unet.training
    assert not own_sd15.unet._forward_hooks
    assert not own_sd15.unet._forward_pre_hooks


def test_dropout_is_off_while_sampling(own_sd15: Components) -> None:
    plain = image_digest(_draw(own_sd15)[0])
    add_lora(own_sd15.unet, rank=2, alpha=2.0, dropout=0.9)
    own_sd15.unet.train()
    assert image_digest(_draw(own_sd15)[0]) == plain


def test_a_prompts_image_does_not_depend_on_the_others(sd15: Components) -> None:
    alone = _draw(sd15, prompts=["a blue star"])[0]
    among = _draw(sd15, prompts=["a red circle", "a blue star", ""])
    assert image_digest(among[1]) == image_digest(alone)
    assert len({image_digest(image) for image in among}) == 3


def test_seed_prompt_guidance_and_negative_prompt_matter(sd15: Components) -> None:
    images = [
        _draw(sd15), _draw(sd15, seed=2), _draw(sd15, guidance=1.0), _draw(sd15, negative_prompt="blue"),
        _draw(sd15, prompts=["a blue star"]), _draw(sd15, steps=4),
    ]  # fmt: skip
    assert len({image_digest(image[0]) for image in images}) == len(images)


def test_another_unet_is_sampled_with_its_own_weights(sd15: Components) -> None:
    other = copy.deepcopy(sd15.unet)
    with torch.no_grad():
        other.conv_out.bias += 1
    assert image_distance(_draw(sd15)[0], _draw(sd15, other)[0]) > 0.01


@pytest.mark.parametrize(
    ("weights", "autocast"),
    [(torch.bfloat16, None), (torch.bfloat16, torch.bfloat16), (torch.float32, torch.bfloat16), (torch.float16, None)],
)
@pytest.mark.parametrize("kind", ["sd15", "inpainting"])
def test_low_precision(
    kind: str, weights: torch.dtype, autocast: torch.dtype | None, request: pytest.FixtureRequest
) -> None:
    components: Components = request.getfixturevalue(kind)
    unet = copy.deepcopy(components.unet)
    for parameter in unet.parameters():
        parameter.data = parameter.data.to(weights)
    distance = image_distance(_draw(components)[0], _draw(components, unet, autocast_dtype=autocast)[0])
    assert distance < 0.05


def test_inpainting_uses_picture_and_mask(inpainting: Components) -> None:
    picture = Image.new("RGB", (100, 75), (250, 10, 10))
    nothing, half = Image.new("L", (100, 75), 0), Image.new("L", (100, 75), 0)
    half.paste(255, (0, 0, 50, 75))
    images = [
        _draw(inpainting), _draw(inpainting, inpaint_image=picture, inpaint_mask=nothing),
        _draw(inpainting, inpaint_image=picture, inpaint_mask=half),
    ]  # fmt: skip
    assert all(image[0].size == (64, 48) for image in images)
    assert len({image_digest(image[0]) for image in images}) == 3


def test_what_is_impossible_is_refused(sd15: Components) -> None:
    with pytest.raises(ModelError, match=r"did you mean 'euler-a'\?") as caught:
        _draw(sd15, sampler="euler_a")
    assert caught.value.hint is not None
    assert "dpm++ 2m" in caught.value.hint
    with pytest.raises(ModelError, match="multiples of 8"):
        _draw(sd15, width=60)


def test_distances_and_digests() -> None:
    black, white = Image.new("RGB", (4, 3)), Image.new("RGB", (4, 3), "white")
    assert image_distance(black, black) == 0
    assert image_distance(black, white) == 1
    assert image_distance(black, Image.new("RGB", (4, 3), (255, 0, 0))) == pytest.approx(3**-0.5)
    assert image_digest(black) == image_digest(Image.new("L", (4, 3)))
    assert image_digest(black) != image_digest(Image.new("RGB", (3, 4)))
    with pytest.raises(DataError, match="4x3 and 3x4"):
        image_distance(black, Image.new("RGB", (3, 4)))
