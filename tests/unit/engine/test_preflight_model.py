"""The weights that preflight finds by the files' headers, against the models that the trainer loads from them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import init_empty_weights
from safetensors.torch import load_file, save_file

from trainscope.config.load import parse_config
from trainscope.engine.preflight import model as finding
from trainscope.engine.preflight import preflight_source
from trainscope.engine.preflight.model import Absent, Model, find_model
from trainscope.engine.preflight.published import parts_of_file
from trainscope.engine.preflight.stored import PAGE, PAGES, Weight, magnitudes
from trainscope.engine.tables import as_table
from trainscope.errors import ModelError
from trainscope.lora.tensors import StoredTensor
from trainscope.probes.params import ParamsProbe
from trainscope.proof.runs import RunSpec
from trainscope.trainer.build import build_session
from trainscope.trainer.models import parts
from trainscope.trainer.models.architectures import architectures
from trainscope.trainer.models.tiny import tiny_folder

SHAPES = Path(__file__).parents[3] / "examples" / "shapes"


def resolved(base: Path | str, *changes: str) -> Any:
    text = f'[model]\nbase = "{base}"\n[train]\nsteps = 4\n[data]\ndir = "{SHAPES.as_posix()}"\nresolution = 64\n'
    return parse_config(text, overrides=["train.method=finetune", *changes])


def found(base: Path | str, *changes: str) -> list[Weight]:
    model = find_model(resolved(base, *changes))
    assert isinstance(model, Model)
    return model.weights


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder("sdxl"), tmp_path / "model"))


# ---- the params table is the run's own


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"train.method": "lora"}, marks=pytest.mark.slow),
        {"train.parts": ["unet", "text_encoder"], "precision.weights": "bf16"},
        {"train.method": "lora", "train.parts": ["text_encoder"], "lora.rank": 4},
        {"train.method": "lora", "lora.conv_rank": 4, "lora.targets": ["proj_in", "ff.net.2", "linear_1"]},
        pytest.param(
            {"train.method": "lora", "lora.conv_rank": 8, "lora.targets": ["conv1", "to_out.0"]}, marks=pytest.mark.slow
        ),
    ],
    ids=str,
)
def test_the_params_are_those_of_the_run(changes: dict[str, Any]) -> None:
    tiny_folder("sdxl")
    config = RunSpec({"model.base": "tiny:sdxl", **changes}).resolved()
    before = {row["param"]: row for row in as_table(preflight_source(config).tables["params"]).to_pylist()}
    session = build_session(config)
    measured = ParamsProbe(session.params).measure(session.components.models, session.optimizer).columns
    assert before.keys() == set(measured["param"])
    for number, param in enumerate(measured["param"]):
        row = before[param]
        for column in ("name", "component", "module", "shape", "dtype", "numel"):
            assert row[column] == measured[column][number], (param, column)
        for column in ("weight_rms", "weight_abs_median"):
            # Of an adapter's the distribution is known, and not what is drawn. What is small is read whole.
            whole = row["numel"] * 4 <= PAGE * PAGES
            rel = 0.25 if ".lora_" in param else 0.1 if not whole else 0.01 if "bf16" in changes.values() else 1e-5
            assert row[column] == pytest.approx(measured[column][number], rel=rel, abs=1e-9), (param, column)


# ---- folders


def test_a_folder_has_all_parts(folder: Path) -> None:
    weights = found(folder)
    assert {weight.component for weight in weights} == {"unet", "text_encoder", "text_encoder_2", "vae"}
    for part, stem in finding.STEMS.items():
        stored = load_file(folder / part / f"{stem}.safetensors")
        own = [weight for weight in weights if weight.component == part]
        assert sum(weight.numel for weight in own) == sum(tensor.numel() for tensor in stored.values())


@pytest.mark.parametrize("variant", ["", ".fp16", ".bf16"])
@pytest.mark.parametrize("shards", [1, 3])
def test_variants_and_shards_are_found_as_the_loader_finds_them(variant: str, shards: int, folder: Path) -> None:
    whole = sorted((weight.param, weight.shape) for weight in found(folder))
    unet, stem = folder / "unet", "diffusion_pytorch_model"
    tensors = load_file(unet / f"{stem}.safetensors")
    (unet / f"{stem}.safetensors").unlink()
    names = sorted(tensors)
    if shards == 1:
        save_file(tensors, unet / f"{stem}{variant}.safetensors")
    else:
        files = {
            name: f"{stem}{variant}-{number % shards + 1:05}-of-00003.safetensors" for number, name in enumerate(names)
        }
        for file in set(files.values()):
            save_file({name: tensors[name] for name in names if files[name] == file}, unet / file)
        (unet / f"{stem}.safetensors.index{variant}.json").write_text(json.dumps({"weight_map": files}))
    weights = found(folder)
    assert sorted((weight.param, weight.shape) for weight in weights) == whole
    chosen, _ = parts.find_weights(unet, stem, "the model")
    assert {weight.file for weight in weights if weight.component == "unet"} <= set(
        [chosen] if shards == 1 else unet.glob("*-of-*")
    )


def test_another_vae_is_counted_in_its_place(folder: Path, tmp_path: Path) -> None:
    save_file({"first_stage_model.a": torch.zeros(7), "cond.b": torch.zeros(5)}, tmp_path / "vae.safetensors")
    vae = [weight for weight in found(folder, f"model.vae={tmp_path / 'vae.safetensors'}") if weight.component == "vae"]
    assert [(weight.name, weight.numel) for weight in vae] == [("a", 7)]
    assert not [one for one in found(folder, "model.vae=nobody/has-this") if one.component == "vae"]


# ---- single files


@pytest.mark.parametrize("kind", [*(pytest.param(kind, marks=pytest.mark.slow) for kind in ("sd1", "sd2")), "sdxl"])
def test_a_single_files_names_are_those_of_the_models(kind: str) -> None:
    """Of the published sizes: built without storage, against the published list of the file's tensors."""
    import diffusers
    import transformers

    known = architectures()[kind]
    stored = [StoredTensor(name, "F16", shape, 0, 0) for name, shape in known.tensors.items()]
    names = {(weight.param, weight.shape) for weight in parts_of_file(Path("x"), stored) if weight.component != "vae"}
    with init_empty_weights():
        models = {"unet": diffusers.UNet2DConditionModel.from_config(dict(known.unet))}
        for part, encoder in zip(("text_encoder", "text_encoder_2"), known.text_encoders, strict=False):
            model_class = getattr(transformers, encoder.model_class)
            models[part] = model_class(transformers.CLIPTextConfig(**encoder.config))
    assert names == {
        (f"{part}.{name}", tuple(tensor.shape))
        for part, model in models.items()
        for name, tensor in model.named_parameters()
    }


def test_openclips_three_in_one_is_cut_into_three(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    joined = torch.cat([torch.full((4, 4), value) for value in (1.0, 2.0, 3.0)])
    prefix = "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight"
    save_file({prefix: joined, "model.diffusion_model.out.2.weight": torch.zeros(4)}, file)
    measured = magnitudes(found(file))
    start = "text_encoder_2.text_model.encoder.layers.0.self_attn"
    assert [measured[f"{start}.{name}_proj.weight"]["weight_rms"] for name in "qkv"] == [1.0, 2.0, 3.0]


# ---- magnitudes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_a_magnitude_is_that_of_the_whole_tensor(dtype: torch.dtype, tmp_path: Path) -> None:
    """Rows of different scales, so that a sample from one place would be wrong; and a small tensor, read whole."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.linspace(0.5, 2.0, 512, dtype=torch.float64)[:, None]
    large = torch.randn(512, 512, generator=generator, dtype=torch.float64) * scales
    tensors = {"large": large.to(dtype), "small": large[0, :101].to(dtype).clone(), "empty": torch.zeros(0, 3)}
    tensors["counts"] = torch.arange(7)
    file = tmp_path / "a.safetensors"
    save_file(tensors, file)
    from trainscope.lora.tensors import open_tensors

    weights = [
        Weight("unet", one.name, one.shape, one.dtype, file, one.start, one.end)
        for one in open_tensors(file).tensors.values()
    ]
    measured = magnitudes(weights)
    assert measured.keys() == {"unet.large", "unet.small"}
    for name, rel in (("large", 0.05), ("small", 1e-6)):
        exact = tensors[name].double().flatten()
        assert measured[f"unet.{name}"]["weight_rms"] == pytest.approx(float(exact.pow(2).mean().sqrt()), rel=rel)
        assert measured[f"unet.{name}"]["weight_abs_median"] == pytest.approx(float(exact.abs().median()), rel=rel)


def test_of_a_large_file_little_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file with the header of 10 GB: a hole on the disk, of which whoever reads it all reads 10 GB of zeros."""
    shapes = {f"unet.{number}": (1280, 1280) for number in range(1600)}
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + int(np.prod(shape)) * 4
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file = tmp_path / "large.safetensors"
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.truncate(8 + len(text) + end)
    decoded: list[int] = []
    from trainscope.engine.preflight import stored
    from trainscope.lora.tensors import open_tensors

    real = stored.decode
    monkeypatch.setattr(stored, "decode", lambda content, dtype: decoded.append(len(content)) or real(content, dtype))
    weights = [
        Weight("unet", one.name, one.shape, one.dtype, file, one.start, one.end)
        for one in open_tensors(file).tensors.values()
    ]
    assert len(magnitudes(weights)) == 1600
    assert sum(decoded) == 1600 * PAGE * PAGES < end / 100


# ---- what is not there, and what is wrong


@pytest.mark.parametrize(
    ("base", "reason"),
    [
        ("nobody/has-this-model", "not downloaded yet"),
        ("tiny:nothing-of-that-name", "not built yet"),
    ],
)
def test_what_is_not_there_yet_is_not_observable(base: str, reason: str) -> None:
    absent = find_model(resolved(base))
    assert isinstance(absent, Absent)
    assert reason in absent.reason


def test_a_hub_id_in_the_cache_is_read(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "hub" / "models--somebody--model" / "snapshots" / ("0" * 40)
    shutil.copytree(folder, snapshot)
    refs = snapshot.parent.parent / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert len(found("somebody/model")) == len(found(folder))


def _empty(folder: Path) -> str:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"")
    return "is empty"


def _cut(folder: Path) -> str:
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    return "not a whole safetensors file"


def _huge_header(folder: Path) -> str:
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes((2**62).to_bytes(8, "little") + b"{}")
    return "not a whole safetensors file"


def _web_page(folder: Path) -> str:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_text("<!doctype html>")
    return "a web page"


def _no_unet(folder: Path) -> str:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    return "lacks unet/diffusion_pytorch_model.safetensors"


def _pickled_unet(folder: Path) -> str:
    _no_unet(folder)
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x02")
    return "pickled weights only"


def _no_index(folder: Path) -> str:
    (folder / "model_index.json").unlink()
    return "lacks model_index.json"


def _damaged_index(folder: Path) -> str:
    (folder / "model_index.json").write_text("[" * 100_000)
    return "model_index.json is damaged"


def _a_list_for_an_index(folder: Path) -> str:
    (folder / "model_index.json").write_text("[1]")
    return "no JSON object"


def _missing_shard(folder: Path) -> str:
    _no_unet(folder)
    index = {"weight_map": {"conv_in.weight": "gone-00001-of-00002.safetensors"}}
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    return "lacks unet/gone-00001-of-00002.safetensors"


def _no_weight_map(folder: Path) -> str:
    _no_unet(folder)
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text('{"weight_map": {"a": 3}}')
    return "has no weight_map"


@pytest.mark.parametrize(
    "damage",
    [
        _empty, _cut, _huge_header, _web_page, _no_unet, _pickled_unet, _no_index, _damaged_index,
        _a_list_for_an_index, _missing_shard, _no_weight_map,
    ],
)  # fmt: skip
def test_a_damaged_model_is_one_error(damage: Callable[[Path], str], folder: Path) -> None:
    says = damage(folder)
    with pytest.raises(ModelError) as error:
        find_model(resolved(folder))
    assert says in str(error.value)
    assert error.value.hint


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("model.ckpt", "pickled checkpoint"),
        ("gone.ckpt", "pickled checkpoint"),
        ("model.txt", "no .safetensors"),
        ("gone.safetensors", "there is no file"),
        ("no/such/folder/here", "there is no folder"),
        ("lora.safetensors", "no checkpoint of Stable Diffusion"),
    ],
)
def test_what_is_no_model_is_one_error(name: str, says: str, tmp_path: Path) -> None:
    for there in ("model.ckpt", "model.txt"):
        (tmp_path / there).write_bytes(b"\x80\x02")
    save_file({"lora_unet_a.lora_down.weight": torch.zeros(4, 4)}, tmp_path / "lora.safetensors")
    with pytest.raises(ModelError) as error:
        find_model(resolved(tmp_path / name))
    assert says in str(error.value)
