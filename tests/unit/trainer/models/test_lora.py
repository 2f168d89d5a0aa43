from __future__ import annotations

import pytest
import torch

from tests.unit.trainer.conftest import weights_digest
from trainscope.errors import ModelError
from trainscope.trainer.models.load import Components
from trainscope.trainer.models.lora import add_lora, lora_pairs, trained_parameters


def _predict(unet: torch.nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    noisy, text = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 77, 32, generator=generator)
    with torch.no_grad():
        output: torch.Tensor = unet(noisy, torch.tensor([3, 700]), text, return_dict=False)[0]
    return output


def test_pairs_cover_the_attentions_and_change_nothing_yet(own_sd15: Components) -> None:
    before = _predict(own_sd15.unet)
    state = torch.get_rng_state()
    pairs = add_lora(own_sd15.unet, rank=4, alpha=2.0)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(_predict(own_sd15.unet), before)
    assert [pair.module.rsplit(".attn", 1)[1] for pair in pairs] == [
        f"{attention}.{projection}" for attention in (1, 2) for projection in ("to_q", "to_k", "to_v", "to_out.0")
    ]
    for pair in pairs:
        assert (pair.rank, pair.alpha, pair.scale) == (4, 2.0, 0.5)
        assert pair.a.shape == (4, pair.base_weight.shape[1])
        assert pair.b.shape == (pair.base_weight.shape[0], 4)
        assert not pair.b.any()
        assert not pair.base_weight.requires_grad
        bound = pair.a.shape[1] ** -0.5  # Kaiming's for a = √5
        assert 0.8 * bound < float(pair.a.detach().abs().max()) <= bound


def test_only_the_pairs_are_trained(own_sd15: Components) -> None:
    own_sd15.unet.requires_grad_(True)
    pairs = add_lora(own_sd15.unet, rank=2, alpha=2.0)
    trained = trained_parameters(own_sd15.models)
    assert [id(p) for p in trained.values()] == [id(p) for pair in pairs for p in (pair.a, pair.b)]
    assert all(name.startswith("unet.") and ".lora_" in name for name in trained)


def test_names_do_not_depend_on_wrappers(own_sd15: Components) -> None:
    own_sd15.unet.conv_out.requires_grad_(True)
    wrapped = torch.nn.Module()
    wrapped.module = own_sd15.unet
    names = ["unet.conv_out.weight", "unet.conv_out.bias"]
    assert list(trained_parameters({"unet": wrapped})) == list(trained_parameters(own_sd15.models)) == names


def test_the_scale_in_effect_follows_the_model(own_sd15: Components) -> None:
    pair = add_lora(own_sd15.unet, rank=4, alpha=8.0)[0]
    assert pair.scale == 2.0
    own_sd15.unet.disable_adapters()
    assert pair.scale == 0.0
    own_sd15.unet.enable_adapters()
    assert pair.scale == 2.0


def test_the_start_depends_on_the_seed_alone(sd15: Components) -> None:
    import copy

    digests = []
    for seed, noise in ((1, 0), (1, 99), (2, 0)):
        unet = copy.deepcopy(sd15.unet)
        torch.manual_seed(noise)
        add_lora(unet, rank=4, alpha=4.0, seed=seed)
        digests.append(weights_digest(unet))
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_pairs_have_their_own_dtype(own_sd15: Components, base: torch.dtype, dtype: torch.dtype) -> None:
    own_sd15.unet.to(base)
    pairs = add_lora(own_sd15.unet, rank=4, alpha=4.0, dtype=dtype)
    assert {pair.a.dtype for pair in pairs} | {pair.b.dtype for pair in pairs} == {dtype}
    assert {pair.base_weight.dtype for pair in pairs} == {base}


def test_convolutions_take_pairs_too(own_sd15: Components) -> None:
    pairs = add_lora(own_sd15.unet, rank=2, alpha=2.0, targets=["conv1", "ff.net.2"])
    assert {pair.a.ndim for pair in pairs} == {2, 4}
    assert torch.isfinite(_predict(own_sd15.unet)).all()


def test_kernels_have_a_rank_and_an_alpha_of_their_own(own_sd15: Components) -> None:
    """As in kohya: 3×3 convolutions by conv_rank, targets or not; 1×1 ones and linear layers by rank."""
    before = _predict(own_sd15.unet)
    pairs = add_lora(
        own_sd15.unet, rank=4, alpha=2.0, targets=["to_q", "proj_in", "conv1"], conv_rank=3, conv_alpha=6.0
    )
    assert torch.equal(_predict(own_sd15.unet), before)
    expected = {
        name
        for name, module in own_sd15.unet.named_modules()
        if isinstance(module, torch.nn.Conv2d) and module.kernel_size == (3, 3) and "lora_" not in name
    }
    expected = {name.removesuffix(".base_layer") for name in expected} - {"conv_in", "conv_out"}
    assert {pair.path for pair in pairs if pair.kernel} == expected
    for pair in pairs:
        assert (pair.rank, pair.alpha, pair.scale) == ((3, 6.0, 2.0) if pair.kernel else (4, 2.0, 0.5))
        assert pair.a.shape == (pair.rank, *pair.base_weight.shape[1:])
        assert pair.b.shape[:2] == (pair.base_weight.shape[0], pair.rank)
    assert {pair.path.rpartition(".")[2] for pair in pairs if not pair.kernel} == {"to_q", "proj_in"}


def test_kernels_take_the_alpha_of_the_others(own_sd15: Components) -> None:
    pairs = add_lora(own_sd15.unet, rank=4, alpha=2.0, conv_rank=8)
    assert {(pair.kernel, pair.alpha, pair.scale) for pair in pairs} == {(False, 2.0, 0.5), (True, 2.0, 0.25)}


def test_what_a_pair_adds(own_sd15: Components) -> None:
    """W + s B A, in float64, for linear layers and convolutions."""
    pairs = add_lora(own_sd15.unet, rank=4, alpha=2.0, targets=["to_q", "proj_in"], conv_rank=3, conv_alpha=6.0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for pair in pairs:
            pair.b.normal_(generator=generator)
    for pair in (pairs[0], *(pair for pair in pairs if pair.a.ndim == 4)):
        change = pair.b.detach().double().flatten(1) @ pair.a.detach().double().flatten(1) * pair.scale
        found = pair.layer.get_delta_weight("default").detach().double()
        torch.testing.assert_close(found, change.reshape(pair.base_weight.shape), rtol=1e-5, atol=1e-6)


def test_a_text_encoder(own_sd15: Components) -> None:
    pairs = add_lora(own_sd15.text_encoder, component="text_encoder", rank=2, alpha=1.0, dropout=0.25)
    assert len(pairs) == 8
    assert {pair.component for pair in pairs} == {"text_encoder"}
    assert {pair.path.rpartition(".")[2] for pair in pairs} == {"q_proj", "k_proj", "v_proj", "out_proj"}
    assert {pair.dropout for pair in pairs} == {0.25}


@pytest.mark.parametrize(
    ("targets", "says"),
    [
        (["to_q", "to_kk"], r"'to_kk' matches no module; near it: .*to_k"),
        (["to_q", "attn1"], r"'attn1' matches Attention.*near it: attn1\.to_"),
        (["to_out"], r"near it: to_out\.0"),
        (["norm1"], r"'norm1' matches"),
        ([], "no target is given"),
    ],
)
def test_targets_that_match_nothing(own_sd15: Components, targets: list[str], says: str) -> None:
    with pytest.raises(ModelError, match=says):
        add_lora(own_sd15.unet, rank=2, alpha=2.0, targets=targets)
    assert not lora_pairs(own_sd15.unet)


def test_all_targets_that_match_nothing_are_told_at_once(own_sd15: Components) -> None:
    with pytest.raises(ModelError, match=r"(?s)'to_x'.*'to_y'"):
        add_lora(own_sd15.unet, rank=2, alpha=2.0, targets=["to_x", "to_q", "to_y"])


def test_a_second_lora_and_a_rank_of_zero_are_refused(own_sd15: Components) -> None:
    with pytest.raises(ModelError, match="at least 1, found 0"):
        add_lora(own_sd15.unet, rank=0, alpha=1.0)
    add_lora(own_sd15.unet, rank=2, alpha=2.0)
    with pytest.raises(ModelError, match="already has a LoRA"):
        add_lora(own_sd15.unet, rank=2, alpha=2.0)


def test_a_text_encoder_has_targets_of_its_own(own_sd15: Components) -> None:
    with pytest.raises(ModelError, match=r"lora\.text_encoder_targets: 'q_prog' matches no module; near it: .*q_proj"):
        add_lora(own_sd15.text_encoder, component="text_encoder", rank=2, alpha=1.0, targets=["q_prog"])
    with pytest.raises(ModelError, match=r"lora\.conv_rank = 4: the text_encoder has no 3×3 convolution"):
        add_lora(own_sd15.text_encoder, component="text_encoder", rank=2, alpha=1.0, conv_rank=4)
    assert not lora_pairs(own_sd15.text_encoder)
