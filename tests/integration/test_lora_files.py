"""`trainscope lora`: files as trainings and other programs write them, and what diffusers makes of the results."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.integration.commands import digest, refused, trainscope
from tests.integration.test_imports import HEAVY, modules_of
from tests.unit.lora.loras import Tensors, diffusers_tensors, kohya_tensors, write
from trainscope.lora.file import read_lora
from trainscope.trainer.models.load import Components, load_components
from trainscope.trainer.models.lora import add_lora
from trainscope.trainer.models.quiet import quiet_libraries
from trainscope.trainer.models.save import save_lora
from trainscope.trainer.models.tiny import tiny_folder

Array = NDArray[np.float32]

TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "conv1", "proj_in", "time_emb_proj")


@pytest.fixture(scope="module")
def sd15() -> Components:
    return load_components("tiny:sd15", base_dir=Path())


@pytest.fixture(scope="module")
def trained(sd15: Components, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a LoRA of rank 6 and alpha 3, on linear layers and convolutions, with falling singular values."""
    unet = copy.deepcopy(sd15.unet)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        pairs = add_lora(unet, rank=6, alpha=3.0, targets=TARGETS)
        for number, pair in enumerate(pairs):
            pair.b.normal_(generator=generator)
            pair.b.mul_((0.4 + 0.1 * (number % 5)) ** torch.arange(6).reshape(-1, *(1 for _ in pair.b.shape[2:])))
    return save_lora(tmp_path_factory.mktemp("trained"), pairs, metadata={"trainscope_step": "9"}).parent


def output(unet: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(2, 4, 8, 8, generator=generator)
    text = torch.randn(2, 5, unet.config.cross_attention_dim, generator=generator)
    with torch.no_grad():
        result: torch.Tensor = unet(sample, torch.tensor([100, 700]), text).sample
    return result


def loaded(path: Path) -> Any:
    """diffusers' pipeline with the LoRA, as a user gets it."""
    with quiet_libraries():
        from diffusers import StableDiffusionPipeline

        pipeline = StableDiffusionPipeline.from_pretrained(tiny_folder("sd15"), safety_checker=None)
        pipeline.load_lora_weights(str(path.parent), weight_name=path.name)
    return pipeline


def changes(pipeline: Any) -> dict[tuple[str, str], Array]:
    """By component and module, what the LoRA adds to the weight."""
    from peft.tuners.lora import LoraLayer

    return {
        (component, name): layer.get_delta_weight(next(iter(layer.r))).detach().numpy()
        for component in ("unet", "text_encoder")
        for name, layer in getattr(pipeline, component).named_modules()
        if isinstance(layer, LoraLayer)
    }


def as_kohya(source: Path, path: Path, alpha: Callable[[int], float] = lambda number: 3.0) -> Path:
    """A diffusers file in kohya's layout; `alpha` of the module's number."""
    tensors: Tensors = {}
    for number, pair in enumerate(read_lora(source).pairs):
        stem = "lora_unet_" + pair.module.replace(".", "_")
        tensors |= {f"{stem}.lora_down.weight": pair.down, f"{stem}.lora_up.weight": pair.up}
        tensors[f"{stem}.alpha"] = np.array(alpha(number), dtype=np.float32)
    return write(path, tensors, {"ss_network_dim": "6", "ss_network_alpha": "3.0"})


def resized(*args: object) -> None:
    result = trainscope("lora", "resize", *args)
    assert result.code == 0, result.err
    assert result.last_line.endswith("written")


@pytest.mark.parametrize("rank", [6, 8])
@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
def test_full_rank_leaves_the_output_as_it_was(
    trained: Path, sd15: Components, tmp_path: Path, layout: str, rank: int
) -> None:
    source = trained if layout == "diffusers" else as_kohya(trained, tmp_path / "a.safetensors")
    resized(source, tmp_path / "b.safetensors", "--rank", rank)
    before = output(loaded(trained / "pytorch_lora_weights.safetensors").unet)
    after = output(loaded(tmp_path / "b.safetensors").unet)
    assert (before - output(sd15.unet)).abs().max() > 0.1
    torch.testing.assert_close(after, before, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(
    "options", [("--rank", 2), ("--rank", 2, "--alpha", 7), ("--energy", 0.9), ("--energy", 0.97, "--alpha", 0.5)]
)
@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
def test_a_smaller_rank_acts_as_the_truncated_change(
    trained: Path, sd15: Components, tmp_path: Path, layout: str, options: tuple[object, ...]
) -> None:
    """Against the weights with the truncated ΔW added by hand."""
    source = trained if layout == "diffusers" else as_kohya(trained, tmp_path / "a.safetensors")
    resized(source, tmp_path / "b.safetensors", *options)
    pairs = read_lora(tmp_path / "b.safetensors").pairs
    if "--energy" in options:
        assert len({pair.rank for pair in pairs}) > 1
    unet = copy.deepcopy(sd15.unet)
    modules = dict(unet.named_modules())
    for pair in read_lora(trained).pairs:
        rank = next(new.rank for new in pairs if new.matches(pair.module))
        change = pair.scale * pair.up.reshape(len(pair.up), -1).astype(float) @ pair.down.reshape(pair.rank, -1)
        u, values, v = np.linalg.svd(change, full_matrices=False)
        weight = modules[pair.module].weight
        truncated = torch.from_numpy((u[:, :rank] * values[:rank]) @ v[:rank])
        weight.data += truncated.reshape(weight.shape).to(weight.dtype)
    after = output(loaded(tmp_path / "b.safetensors").unet)
    torch.testing.assert_close(after, output(unet), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
def test_diffusers_gives_every_module_its_strength(tmp_path: Path, layout: str) -> None:
    """On every layer of both models, with ranks and alphas that all differ."""
    with quiet_libraries():
        from diffusers import StableDiffusionPipeline

        pipeline = StableDiffusionPipeline.from_pretrained(tiny_folder("sd15"), safety_checker=None)
    random = np.random.default_rng(0)
    tensors: Tensors = {}
    adapters: dict[str, Any] = {}
    for component, prefix in (("unet", "lora_unet_"), ("text_encoder", "lora_te_")):
        alphas = {}
        for name, module in getattr(pipeline, component).named_modules():
            linear = isinstance(module, torch.nn.Linear)
            if not linear and not isinstance(module, torch.nn.Conv2d):
                continue
            rank = 2 + len(alphas) % 4
            alphas[name] = rank * (2.0 if len(alphas) % 3 else 0.5)
            out, *inside = module.weight.shape
            down = random.normal(size=(rank, *inside)) * 0.6 ** np.arange(rank).reshape(-1, *(1 for _ in inside))
            up = random.normal(size=(out, rank, *(() if linear else (1, 1))))
            stem = prefix + name.replace(".", "_") if layout == "kohya" else f"{component}.{name}"
            halves = ("lora_down", "lora_up") if layout == "kohya" else ("lora_A", "lora_B")
            for half, array in zip(halves, (down, up), strict=True):
                tensors[f"{stem}.{half}.weight"] = array.astype(np.float32)
            if layout == "kohya":
                tensors[f"{stem}.alpha"] = np.array(alphas[name], np.float32)
        adapters |= {f"{component}.r": 4, f"{component}.lora_alpha": 4, f"{component}.alpha_pattern": alphas}
    header = {"lora_adapter_metadata": json.dumps(adapters)} if layout == "diffusers" else None
    source = write(tmp_path / "a.safetensors", tensors, header)
    resized(source, tmp_path / "b.safetensors", "--energy", 0.97)
    before, after = read_lora(source), read_lora(tmp_path / "b.safetensors")
    assert len({pair.rank for pair in after.pairs}) > 2
    live = changes(loaded(tmp_path / "b.safetensors"))
    assert len(live) == len(before.pairs) == len(after.pairs) > 50
    for old, new in zip(before.pairs, after.pairs, strict=True):
        [change] = [
            delta for (component, name), delta in live.items() if component == new.component and new.matches(name)
        ]
        whole = old.scale * (old.up.reshape(len(old.up), -1) @ old.down.reshape(old.rank, -1)).astype(float)
        u, values, v = np.linalg.svd(whole, full_matrices=False)
        want = (u[:, : new.rank] * values[: new.rank]) @ v[: new.rank]
        np.testing.assert_allclose(change.reshape(want.shape), want, atol=3e-6 * np.linalg.norm(whole), err_msg=new.key)


@pytest.mark.parametrize("layers", ["linear", "convolutions", "text encoder"])
def test_a_converted_file_acts_as_before(sd15: Components, tmp_path: Path, layers: str) -> None:
    """diffusers makes the same changes of both files, and the way back has the same bits."""
    models = copy.deepcopy(sd15.models)
    pairs = []
    if layers == "text encoder":
        pairs += add_lora(models["text_encoder"], component="text_encoder", rank=3, alpha=1.0)
    conv_rank = 2 if layers == "convolutions" else None
    pairs += add_lora(models["unet"], rank=6, alpha=3.0, targets=("to_q", "to_out.0", "proj_in"), conv_rank=conv_rank)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for pair in pairs:
            pair.b.normal_(generator=generator)
    source = save_lora(tmp_path / "own", pairs)
    result = trainscope("lora", "convert", source, "--to", "kohya", "--output", tmp_path / "a.safetensors")
    assert result.code == 0, result.err
    assert result.out.startswith(f"diffusers to kohya: {len(pairs)} pairs")
    assert "note:" not in result.out.replace("note: nothing in the file tells", "")
    assert result.last_line == f"{tmp_path / 'a.safetensors'} written"
    before, after = changes(loaded(source)), changes(loaded(tmp_path / "a.safetensors"))
    assert len(pairs) == len(before) == len(after)
    for key, change in before.items():
        np.testing.assert_array_equal(after[key], change)
    assert trainscope("lora", "inspect", tmp_path / "a.safetensors").code == 0
    assert trainscope("lora", "convert", tmp_path / "a.safetensors", "--to", "diffusers").code == 0
    back = tmp_path / "a-diffusers.safetensors"
    assert data_of(back) == data_of(source)
    result = trainscope("lora", "convert", back, "--to", "diffusers", "--output", tmp_path / "c.safetensors")
    assert (result.code, "in the diffusers layout already" in result.message) == (2, True)
    # What is resized afterwards loads as well.
    resized(tmp_path / "a.safetensors", tmp_path / "d.safetensors", "--rank", 6)
    again = changes(loaded(tmp_path / "d.safetensors"))
    for key, change in before.items():
        np.testing.assert_allclose(again[key], change, atol=1e-5 * np.abs(change).max(), err_msg=str(key))


def data_of(path: Path) -> dict[str, tuple[str, bytes]]:
    tensors = read_lora(path).tensors
    return {name: (stored.dtype, tensors.raw(name)) for name, stored in tensors.tensors.items()}


def test_the_dtype_is_kept_or_changed(trained: Path, tmp_path: Path) -> None:
    resized(trained, tmp_path / "half.safetensors", "--rank", 4, "--dtype", "bf16")
    resized(tmp_path / "half.safetensors", tmp_path / "again.safetensors", "--rank", 3)
    assert {pair.dtype for pair in read_lora(tmp_path / "again.safetensors").pairs} == {"bf16"}
    story = read_lora(tmp_path / "again.safetensors").metadata["trainscope_resized"]
    assert story.startswith("rank 6 to 4 (--rank 4), ")
    assert "; rank 4 to 3 (--rank 3), " in story


def test_inspect_a_trained_file(trained: Path) -> None:
    result = trainscope("lora", "inspect", trained)
    assert result.code == 0, result.err
    for part in ("diffusers layout", "rank 6", "alpha 3 (metadata)", "scale 0.5", "down_blocks.0", "trainscope_step"):
        assert part in " ".join(result.out.split()), result.out
    found = json.loads(trainscope("lora", "inspect", trained, "--format", "json").out)
    assert (found["layout"], found["ranks"], found["alphas"]) == (
        "diffusers",
        {"6": found["pairs"]},
        {"3": found["pairs"]},
    )
    total = sum(block["norm"] ** 2 for block in found["blocks"]) ** 0.5
    assert found["norm"] == pytest.approx(total)
    assert (found["damage"], found["problems"], found["notes"]) == ([], [], [])


def test_inspect_an_untrained_file(sd15: Components, tmp_path: Path) -> None:
    unet = copy.deepcopy(sd15.unet)
    result = trainscope("lora", "inspect", save_lora(tmp_path, add_lora(unet, rank=2, alpha=2.0)))
    assert result.code == 1
    assert "problem: untrained: every up half is zero" in result.out


def test_inspect_ldm_names_and_hostile_metadata(tmp_path: Path) -> None:
    tensors = {name.replace("down_blocks_0", "input_blocks_4"): array for name, array in kohya_tensors().items()}
    path = write(tmp_path / "a.safetensors", tensors, {"ss_tag_frequency": "x" * 5000, "\x1b[2J": "a\x1b[31m\u202eb"})
    result = trainscope("lora", "inspect", path)
    assert result.code == 0
    assert "input_blocks.4" in result.out
    assert "(5,000 characters)" in " ".join(result.out.split())
    assert not {"\x1b", "\u202e"} & set(result.out)
    resized(path, tmp_path / "b.safetensors", "--rank", 2)


def test_inspect_shows_what_is_broken_and_exits_with_2(tmp_path: Path) -> None:
    tensors = diffusers_tensors()
    first, second = (name for name in tensors if "lora_B" in name)
    tensors[first] = np.full_like(tensors[first], np.nan)
    del tensors[second]
    path = write(tmp_path / "a.safetensors", tensors)
    for options in ([], ["--format", "json"]):
        result = trainscope("lora", "inspect", path, *options)
        assert result.code == 2
        assert "48 of 48 values of its up half are not finite" in result.message
        assert "lacks its up half" in result.message
        assert "down_blocks.0" in result.out
    refused(
        "lora", "resize", path, tmp_path / "b.safetensors", "--rank", 2, says=("not finite", "lacks"), folder=tmp_path
    )


@pytest.mark.parametrize("verb", ["inspect", "resize", "convert"])
def test_input_that_is_no_lora(tmp_path: Path, verb: str) -> None:
    (tmp_path / "empty.safetensors").touch()
    (tmp_path / "garbage.safetensors").write_bytes(b"\xff" * 99)
    cut = write(tmp_path / "cut.safetensors", kohya_tensors())
    cut.write_bytes(cut.read_bytes()[:-1])
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pt")
    write(tmp_path / "model.safetensors", {"conv_in.weight": np.ones((2, 2), np.float32)})
    (tmp_path / "folder").mkdir()
    options = {"resize": [tmp_path / "out.safetensors", "--rank", 1], "convert": ["--to", "kohya"]}
    out = options.get(verb, [])
    for name, says in {
        "empty.safetensors": "is empty",
        "garbage.safetensors": "not a whole safetensors file",
        "cut.safetensors": "not a whole safetensors file",
        "a.pt": "pickled",
        "model.safetensors": "holds no LoRA",
        "folder": "holds no pytorch_lora_weights.safetensors",
        "none": "no such file",
    }.items():
        refused("lora", verb, tmp_path / name, *out, says=(says,), folder=tmp_path)


def test_options_are_refused_together(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    wrong = ("--rank", 0, "--energy", 1.5, "--alpha", -1, "--dtype", "int8")
    says = ("either --rank or --energy", "--rank 0", "--energy 1.5", "--alpha -1", "--dtype int8")
    refused("lora", "resize", trained, out, *wrong, says=says, folder=tmp_path)
    refused("lora", "resize", trained, out, says=("either --rank or --energy",), folder=tmp_path)
    refused("lora", "resize", trained, out, "--energy", "nan", says=("--energy nan",), folder=tmp_path)
    refused("lora", "resize", trained, out, "--rank", 10**9, says=("has use for more than",), folder=tmp_path)
    refused("lora", "resize", trained, tmp_path / "out", "--rank", 2, says=(".safetensors",), folder=tmp_path)
    refused("lora", "inspect", trained, "--format", "xml", says=("console, json",), folder=tmp_path)
    refused("lora", "convert", trained, "--to", "peft", says=("kohya, diffusers",), folder=tmp_path)
    refused("lora", "convert", trained, "--to", "kohya", "--output", out.with_suffix(".pt"), says=(".safetensors",),
            folder=tmp_path)  # fmt: skip


def test_an_existing_file_stays(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    out.write_text("mine", encoding="utf-8")
    before = digest(trained)
    refused("lora", "resize", trained, out, "--rank", 2, says=("exists",), folder=tmp_path)
    refused(
        "lora",
        "resize",
        trained,
        trained / "pytorch_lora_weights.safetensors",
        "--rank",
        2,
        says=("exists",),
        folder=trained,
    )
    refused("lora", "convert", trained, "--to", "kohya", "--output", out, says=("exists",), folder=tmp_path)
    assert digest(trained) == before


def test_a_place_that_cannot_be_written(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused(
        "lora", "resize", trained, tmp_path / "file" / "b.safetensors", "--rank", 2, says=("cannot",), folder=tmp_path
    )


def test_without_torch(trained: Path, tmp_path: Path) -> None:
    assert not modules_of("lora", "inspect", trained, cwd=tmp_path) & {*HEAVY, "duckdb", "pyarrow", "pandas"}
    converting = modules_of("lora", "convert", trained, "--to", "kohya", "--output", "a.safetensors", cwd=tmp_path)
    assert not converting & {*HEAVY, "duckdb", "pyarrow", "pandas"}
    assert not modules_of("lora", "resize", trained, "b.safetensors", "--rank", 2, cwd=tmp_path) & set(HEAVY)
