"""Configurations, data and models that cannot be: one clear message that names file or key, exit 2, nothing written."""

from __future__ import annotations

import ast
import contextlib
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.commands import QUIET, SHAPES, config_text, refused, settings, trainscope
from trainscope.config import combinations
from trainscope.config.load import parse_config
from trainscope.errors import ConfigError

# ---- configurations


BAD_CONFIGS: dict[str, tuple[str, tuple[str, ...]]] = {
    "empty": ("", ("cfg.toml: 3 problems", "model: is required", "train: is required", "data: is required")),
    "broken TOML": ("[[[\n", ("cfg.toml is not valid TOML", "line 1")),
    "a duplicate key": (config_text() + "[train]\nsteps = 3\n", ("cfg.toml is not valid TOML",)),
    "nested without end": ("a = " + "[" * 5000, ("cfg.toml is not valid TOML", "nested too deeply")),
    "no text": ("\x00\x01", ("cfg.toml is not valid TOML",)),
    "a misspelt section": (config_text("[optimiser]", "lr = 1"), ("optimiser: unknown key; did you mean optimizer?",)),
    "a misspelt key": (config_text("[lora]", "rnk = 3"), ("lora.rnk: unknown key; did you mean lora.rank?",)),
    "a key in the wrong section": (
        config_text("[lora]", "batch_size = 3"),
        ("lora.batch_size: unknown key; did you mean train.batch_size?",),
    ),
    "everything at once": (
        config_text(
            "[lora]", "rnk = 3", 'alpha = "a"', "[ema]", "dcay = 1", 'enabled = "yes"', "[smaple]", "steps = 1"
        ),
        (
            "5 problems",
            "lora.rnk: unknown key; did you mean lora.rank?",
            'lora.alpha = "a"',
            "ema.dcay: unknown key; did you mean ema.decay?",
            'ema.enabled = "yes"',
            "smaple: unknown key; did you mean sample?",
        ),
    ),
    "a number as text": (config_text("[optimizer]", 'lr = "1e-4"'), ('optimizer.lr = "1e-4"', "number")),
    "a truth as a number": (config_text("[ema]", "enabled = 1"), ("ema.enabled = 1", "boolean")),
    "a date": (config_text("[run]", "seed = 1979-05-27"), ('run.seed = "1979-05-27"',)),
    "a section as a value": ("ema = 3\n" + config_text(), ("ema = 3: expected a section with keys",)),
    "a section as a list": (config_text("[[ema]]", "enabled = true"), ("ema = [", "expected a section with keys")),
    "an optimizer as a value": ('optimizer = "adamw"\n' + config_text(), ('optimizer = "adamw"', "section with keys")),
    "a list as text": (config_text("[sample]", 'prompts = "a"'), ('sample.prompts = "a": expected a list',)),
    "not a number": (config_text("[optimizer]", "lr = nan"), ("optimizer.lr = NaN: expected a finite number",)),
    "infinity": (config_text("[optimizer]", "lr = inf"), ("optimizer.lr = Infinity: expected a finite number",)),
    "out of range": (config_text("[ema]", "decay = 1.5"), ("ema.decay = 1.5", "less than 1")),
    "a huge number": (config_text("[lora]", "rank = 99999999999999999999"), ("lora.rank = 99999999999999999999",)),
    "a huge seed": (config_text("[sample]", "seed = 99999999999999999999"), ("sample.seed = 99999999999999999999",)),
    "an unknown choice": (config_text("[scheduler]", 'type = "cosin"'), ('scheduler.type = "cosin"', "'cosine'")),
    "an unknown optimizer": (
        config_text("[optimizer]", 'type = "prodigi"'),
        ('optimizer.type = "prodigi": allowed are adamw, ', "did you mean prodigy?"),
    ),
    "another optimizer's key": (
        config_text("[optimizer]", "d_coef = 2.0"),
        ("optimizer.d_coef: belongs to optimizer.type = prodigy, and this run's is adamw",),
    ),
    "an escaping name": (config_text("[run]", 'name = "../../x"'), ('run.name = "../../x"',)),
    "two lengths": (
        config_text().replace("steps = 4", "steps = 4\nepochs = 2"),
        ("train.steps, train.epochs: give exactly one of them, found both",),
    ),
    "no length": (config_text().replace("steps = 4\n", ""), ("train.steps, train.epochs", "found neither")),
    "a warmup that cannot be": (config_text("[scheduler]", "warmup = 5"), ("scheduler.warmup = 5", "constant")),
    "rounding float32": (
        config_text("[precision]", "stochastic_rounding = true"),
        ("precision.stochastic_rounding = true", 'precision.weights = "fp32"'),
    ),
    "two low formats": (
        config_text("[precision]", 'weights = "bf16"', 'base = "fp16"'),
        ('precision.weights = "bf16"', 'precision.base = "fp16"'),
    ),
}


@pytest.mark.parametrize("verb", ["run", "preflight"])
@pytest.mark.parametrize(("text", "says"), BAD_CONFIGS.values(), ids=BAD_CONFIGS.keys())
def test_a_bad_configuration(verb: str, text: str, says: tuple[str, ...], here: Path) -> None:
    (here / "cfg.toml").write_text(text, encoding="utf-8")
    refused(verb, "cfg.toml", says=says, folder=here)


@pytest.mark.parametrize("verb", ["run", "preflight"])
def test_a_configuration_that_is_not_there(verb: str, here: Path) -> None:
    refused(verb, "nope.toml", says=("no such configuration: nope.toml", "trainscope init"), folder=here)
    refused(verb, ".", says=("cannot read .",), folder=here)
    (here / "cfg.toml").write_bytes("name = 'é'".encode("latin-1"))
    refused(verb, "cfg.toml", says=("cannot read cfg.toml", "utf-8"), folder=here)


def test_a_byte_order_mark_is_no_mistake(here: Path) -> None:
    (here / "cfg.toml").write_bytes(b"\xef\xbb\xbf" + config_text().encode())
    assert trainscope("preflight", "cfg.toml", "--fail-on", "never").code == 0


BAD_SETTINGS: dict[str, tuple[str, ...]] = {
    "nonsense": ("--set nonsense: expected KEY=VALUE",),
    "=3": ("--set =3: expected KEY=VALUE",),
    "train=3": ("train = 3: expected a section with keys",),
    "train.steps=": ('train.steps = ""',),
    "train.steps=many": ('train.steps = "many"', "integer"),
    "train.stps=3": ("train.stps: unknown key; did you mean train.steps?",),
    "train..steps=3": ("unknown key",),
    "train.steps.x=3": ("--set train.steps.x: steps is not a section",),
    "é.ü=3": ("é: unknown key",),
    "train.steps=" + "[" * 5000: ("train.steps",),
    "audit.thresholds.PREC001=3": ("audit.thresholds.PREC001 = 3: expected a section with keys",),
    "audit.thresholds.PREC001.min_delivered=lots": ('audit.thresholds.PREC001.min_delivered = "lots"',),
}


@pytest.mark.parametrize(("setting", "says"), BAD_SETTINGS.items(), ids=[key[:30] for key in BAD_SETTINGS])
def test_a_bad_setting(setting: str, says: tuple[str, ...], here: Path) -> None:
    (here / "cfg.toml").write_text(config_text(), encoding="utf-8")
    refused("run", "cfg.toml", "--set", setting, says=says, folder=here)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("audit.thresholds.PREC999.x=1", ("audit.thresholds.PREC999: no such rule",)),
        ("audit.thresholds.PREC001.min_deliverd=1", ("min_deliverd: no such threshold (did you mean min_delivered?)",)),
    ],
)
def test_an_unknown_threshold_is_found_before_the_training(setting: str, says: tuple[str, ...], here: Path) -> None:
    (here / "cfg.toml").write_text(config_text(), encoding="utf-8")
    refused("run", "cfg.toml", *settings(setting, *QUIET), says=says, folder=here)


def test_random_damage_to_a_configuration_is_never_our_failure(here: Path) -> None:
    """Whatever is cut out of a good configuration or put into it: exit 0, 1 or 2, and never a traceback."""
    rng, good = random.Random(0), config_text("[optimizer]", "betas = [0.9, 0.99]", "[sample]", 'prompts = ["a"]')
    pieces = ["[", "]", "=", '"', "\n", "inf", "-1", "{}", "[]", "true", "1e999", "'''", "[[x]]", "optimizer.type=3\n"]
    for _ in range(150):
        start = rng.randrange(len(good))
        text = good[:start] + rng.choice(pieces) + good[start + rng.randrange(12) :]
        (here / "cfg.toml").write_text(text, encoding="utf-8")
        result = trainscope("preflight", "cfg.toml", "--format", "json")
        assert result.code in (0, 1, 2), (text, result.err)
        assert result.code != 2 or result.message


IMPOSSIBLE: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "FSDP of a LoRA": (("train.parallel=fsdp",), ('train.parallel = "fsdp"', 'train.method = "lora"')),
    "FSDP of an optimizer that sees whole tensors": (
        ("train.parallel=fsdp", "train.method=finetune", "optimizer.type=adafactor"),
        ('optimizer.type = "adafactor"', "adamw, sgd-nesterov"),
    ),
    "FSDP of weights that are rounded whole": (
        (
            "train.parallel=fsdp",
            "train.method=finetune",
            "precision.weights=bf16",
            "precision.stochastic_rounding=true",
        ),
        ('train.parallel = "fsdp" with precision.stochastic_rounding = true',),
    ),
    "low weights in float32": (
        ("precision.weights=bf16", "precision.compute=fp32"),
        ('precision.compute = "fp32" with precision.weights = "bf16"',),
    ),
    "a warmup that is none": (("scheduler.type=constant-with-warmup",), ("scheduler.warmup", "above 0")),
    "FSDP with an average elsewhere": (
        ("train.parallel=fsdp", "train.method=finetune", "ema.enabled=true", "ema.device=cpu"),
        ('ema.device = "cpu"',),
    ),
    "FSDP alone": (("train.parallel=fsdp", "train.method=finetune"), ('train.parallel = "fsdp"', "one process")),
    "a LoRA to start a fine-tune from": (("train.method=finetune", "lora.init_from=x"), ('lora.init_from = "x"',)),
    "an alpha of nothing": (("lora.conv_alpha=4.0",), ("lora.conv_alpha = 4", "lora.conv_rank")),
    "convolutions of no UNet": (
        ("lora.conv_rank=4", 'train.parts=["text_encoder"]'),
        ("lora.conv_rank = 4", '"unet" in train.parts'),
    ),
    "cycles of a line": (("scheduler.type=linear", "scheduler.cycles=2"), ("scheduler.cycles = 2", "cosine-with-rest")),
    "an exponent of a line": (("scheduler.type=linear", "scheduler.power=2.0"), ("scheduler.power = 2", "polynomial")),
    "an end of what never ends": (("scheduler.min_lr_ratio=0.1",), ("scheduler.min_lr_ratio = 0.1", "cosine")),
    "two warmups": (("optimizer.type=radam-schedulefree", "scheduler.warmup=2"), ("scheduler.warmup = 2", "its own")),
    "a warmup of D-Adaptation's SGD": (
        ("optimizer.type=dadapt-sgd", "scheduler.type=linear", "scheduler.warmup=2"),
        ("scheduler.warmup = 2", "dadapt-sgd"),
    ),
    "D-Adaptation's SGD in fp16": (
        ("optimizer.type=dadapt-sgd", "precision.weights=fp16"),
        ("dadapt-sgd", 'precision.weights = "fp16"'),
    ),
    "two rates of an estimate": (
        ("optimizer.type=prodigy", "optimizer.unet_lr=1.0"),
        ("optimizer.unet_lr", "one rate"),
    ),
    "a rate beside Adafactor's own": (
        ("optimizer.type=adafactor", "optimizer.relative_step=true", "optimizer.lr=1e-3"),
        ("optimizer.lr with optimizer.relative_step = true",),
    ),
    "a schedule beside Adafactor's own": (
        ("optimizer.type=adafactor", "optimizer.relative_step=true", "scheduler.type=cosine"),
        ('scheduler.type = "cosine" with optimizer.relative_step = true',),
    ),
    "a warmup of no rate": (("optimizer.type=adafactor", "optimizer.warmup_init=true"), ("optimizer.warmup_init",)),
    "kohya's name of an optimizer": (("optimizer.type=DAdaptation",), ("optimizer.type", "dadapt-adam-preprint")),
    "no timestep": (
        ("noise.min_timestep=500", "noise.max_timestep=500"),
        ("noise.min_timestep = 500", "noise.max_timestep = 500"),
    ),
    "two weightings": (
        ("noise.min_snr_gamma=5.0", "noise.debiased=true"),
        ("noise.min_snr_gamma = 5", "noise.debiased"),
    ),
    "noise from pure noise": (
        ("model.zero_terminal_snr=true", "model.prediction_type=epsilon"),
        ("model.zero_terminal_snr = true", "v_prediction"),
    ),
    "more steps than an LCM has": (("sample.sampler=lcm", "sample.steps=60"), ("sample.steps = 60", "at most 50")),
    "a stop by nobody": (("audit.on_finding=stop", "audit.live=false"), ("audit.on_finding", "audit.live = false")),
    "a stop by nothing": (("audit.on_finding=stop", "audit.fail_on=never"), ('audit.fail_on = "never"',)),
    "random crops that are kept": (("data.random_crop=true",), ("data.random_crop", 'cache_latents = "off"')),
    "tags kept of none": (("data.keep_tokens=1",), ("data.keep_tokens = 1", "shuffle_captions = false")),
    "shuffled captions on disk": (
        ("data.cache_text=disk", "data.shuffle_captions=true"),
        ('data.cache_text = "disk"', "shuffle_captions"),
    ),
    "trained captions on disk": (
        ("data.cache_text=disk", 'train.parts=["unet", "text_encoder"]'),
        ('data.cache_text = "disk"', "text_encoder"),
    ),
    "buckets off their grid": (
        ("data.buckets.enabled=true", "data.buckets.min=40", "data.buckets.step=16"),
        ("data.buckets.min = 40", "data.buckets.step = 16"),
    ),
    "buckets upside down": (
        ("data.buckets.enabled=true", "data.buckets.min=512", "data.buckets.max=256"),
        ("data.buckets.min = 512", "data.buckets.max = 256"),
    ),
    "a resolution out of the buckets": (
        ("data.buckets.enabled=true", "data.buckets.min=256", "data.resolution=64"),
        ("data.resolution = 64", "data.buckets.min = 256"),
    ),
}


@pytest.mark.parametrize(("changes", "says"), IMPOSSIBLE.values(), ids=IMPOSSIBLE.keys())
def test_keys_that_cannot_be_together(changes: tuple[str, ...], says: tuple[str, ...], here: Path) -> None:
    (here / "cfg.toml").write_text(config_text(), encoding="utf-8")
    refused("run", "cfg.toml", *settings(*changes), says=says, folder=here)


def test_every_impossible_combination_is_among_them() -> None:
    """By its source: each sentence of `combinations` is said by a case above, or by one of `BAD_CONFIGS`."""
    lines: set[int] = set()

    def seen(frame: Any, event: str, _: Any) -> Any:
        if frame.f_code.co_filename != combinations.__file__:
            return None
        lines.add(frame.f_lineno)
        return seen

    texts = [(config_text(), changes) for changes, _ in IMPOSSIBLE.values()]
    texts += [(text, ()) for text, _ in BAD_CONFIGS.values()]
    before = sys.gettrace()
    for text, changes in texts:
        sys.settrace(seen)  # each time: what is nested too deeply switches it off
        with contextlib.suppress(ConfigError):
            parse_config(text, overrides=changes)
        sys.settrace(before)
    tree = ast.parse(Path(combinations.__file__).read_text(encoding="utf-8"))
    sentences = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Yield) and isinstance(node.value, ast.Constant | ast.JoinedStr)
    ]
    assert len(sentences) > 30
    unsaid = [node for node in sentences if not lines & set(range(node.lineno, (node.end_lineno or 0) + 1))]
    assert [ast.unparse(node) for node in unsaid] == []


# ---- data, models, devices


def pictures(folder: Path, count: int = 4) -> Path:
    """Some of the shapes, with their captions."""
    folder.mkdir()
    for path in sorted(SHAPES.glob("*.png"))[:count]:
        shutil.copy(path, folder)
        shutil.copy(path.with_suffix(".txt"), folder)
    return folder


def _text_as_picture(data: Path) -> None:
    (data / "notes.png").write_text("not a picture", encoding="utf-8")


def _truncated_picture(data: Path) -> None:
    first = min(data.glob("*.png"))
    (data / "broken.png").write_bytes(first.read_bytes()[:200])


def _empty_picture(data: Path) -> None:
    (data / "empty.png").touch()


def _caption_in_latin_1(data: Path) -> None:
    min(data.glob("*.txt")).write_bytes("ein grüner Kreis".encode("latin-1"))


def _caption_missing(data: Path) -> None:
    min(data.glob("*.txt")).unlink()


def _captions_shared(data: Path) -> None:
    first = min(data.glob("*.png"))
    shutil.copy(first, first.with_suffix(".jpg"))


def _pictures_gone(data: Path) -> None:
    shutil.rmtree(data)


def _folder_empty(data: Path) -> None:
    shutil.rmtree(data)
    data.mkdir()


def _a_file(data: Path) -> None:
    shutil.rmtree(data)
    data.write_text("x", encoding="utf-8")


def _pictures_one_folder_below(data: Path) -> None:
    shutil.move(data, data.parent / "moved")
    data.mkdir()
    shutil.move(data.parent / "moved", data / "cats")


BAD_DATA: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "missing": (_pictures_gone, ("images",)),
    "empty": (_folder_empty, ("images", "no pictures")),
    "a file": (_a_file, ("images", "is a file")),
    "one folder below": (_pictures_one_folder_below, ("no pictures", "cats")),
    "a text named .png": (_text_as_picture, ("notes.png", "not a picture")),
    "a truncated picture": (_truncated_picture, ("broken.png",)),
    "an empty picture": (_empty_picture, ("empty.png",)),
    "a caption in Latin-1": (_caption_in_latin_1, (".txt", "not UTF-8")),
    "a caption missing": (_caption_missing, (".txt", "no caption")),
    "two pictures, one caption": (_captions_shared, ("00-red-circle.jpg", "00-red-circle.png")),
}


@pytest.mark.parametrize(("damage", "says"), BAD_DATA.values(), ids=BAD_DATA.keys())
def test_bad_data(damage: Callable[[Path], None], says: tuple[str, ...], here: Path) -> None:
    damage(pictures(here / "images"))
    (here / "cfg.toml").write_text(config_text(data="images"), encoding="utf-8")
    refused("run", "cfg.toml", *settings(*QUIET), says=says, folder=here)


@pytest.mark.parametrize("damage", [_pictures_gone, _folder_empty, _a_file])
def test_preflight_without_data(damage: Callable[[Path], None], here: Path) -> None:
    damage(pictures(here / "images"))
    (here / "cfg.toml").write_text(config_text(data="images"), encoding="utf-8")
    refused("preflight", "cfg.toml", says=("data.dir", "images"), folder=here)


def test_all_unreadable_pictures_are_named_at_once(here: Path) -> None:
    data = pictures(here / "images")
    _text_as_picture(data)
    _truncated_picture(data)
    (here / "cfg.toml").write_text(config_text(data="images"), encoding="utf-8")
    says = ("2 pictures of 6", "notes.png", "broken.png", 'data.on_corrupt = "skip"')
    refused("run", "cfg.toml", *settings(*QUIET), says=says, folder=here)


def test_unreadable_pictures_can_be_left_out(here: Path) -> None:
    data = pictures(here / "images")
    _truncated_picture(data)
    (here / "cfg.toml").write_text(config_text(data="images", steps=1), encoding="utf-8")
    result = trainscope("run", "cfg.toml", *settings(*QUIET, "data.on_corrupt=skip"))
    assert result.code == 0, result.err
    assert "warning: left out broken.png" in result.out


@pytest.mark.parametrize("content", [b"not a mask", b""], ids=["text", "empty"])
def test_a_broken_mask_is_found_before_the_training(content: bytes, here: Path) -> None:
    data = pictures(here / "images")
    masks = pictures(here / "masks")
    max(masks.glob("*.png")).write_bytes(content)
    (here / "cfg.toml").write_text(config_text(data=data.name), encoding="utf-8")
    changes = (*QUIET, "model.base=tiny:sd15-inpainting", "data.mask_dir=masks")
    name = max(masks.glob("*.png")).name
    refused("run", "cfg.toml", *settings(*changes), says=("1 of 4 masks", name), folder=here)


BAD_PARTS: dict[str, tuple[str, ...]] = {
    "model.base=nonsense": ("model.base = 'nonsense'", "no folder"),
    "model.base=tiny:sd9": ("sd9", "did you mean tiny:"),
    "model.base=owner/name": ("owner/name", "HF_HUB_OFFLINE"),
    "model.base=here.safetensors": ("there is no file", "here.safetensors"),
    "model.base=.": ("no diffusers pipeline", "model_index.json"),
    'lora.targets=["to_q", "nonsense"]': ("lora.targets", "'nonsense' matches no module"),
    "lora.targets=[]": ("lora.targets: no target is given",),
    "run.device=banana": ('run.device = "banana" cannot be used', 'run.device = "auto"'),
    "run.device=meta": ('run.device = "meta" cannot be used',),
    "run.device=cuda:99": ('run.device = "cuda:99" cannot be used',),
    "data.mask_dir=nope": ("nope does not exist", "data.mask_dir"),
    f"data.mask_dir={SHAPES}": ("data.mask_dir", "not an inpainting model"),
    "model.vae=nope": ("model.vae", "nope"),
    "model.vae=cfg.toml": ("model.vae", "cfg.toml"),
    "model.clip_skip=9": ("model.clip_skip = 9",),
    "noise.max_timestep=2000": ("noise.max_timestep = 2000", "1000 timesteps"),
    "model.zero_terminal_snr=true": ("zero terminal SNR", "v_prediction"),
    "lora.init_from=nope": ("nope: no such file",),
    "lora.init_from=cfg.toml": ("cfg.toml",),
    "checkpoint.resume=nope": ("nope",),
    "run.dir=cfg.toml": ("cannot make a run directory", "--out"),
    "run.dir=cfg.toml/below": ("cannot make a run directory", "--out"),
}


@pytest.mark.parametrize(("setting", "says"), BAD_PARTS.items(), ids=BAD_PARTS.keys())
def test_a_model_target_device_or_place_that_is_not_there(setting: str, says: tuple[str, ...], here: Path) -> None:
    (here / "cfg.toml").write_text(config_text(), encoding="utf-8")
    refused("run", "cfg.toml", *settings(*QUIET[:-2], "run.seed=1", setting), says=says, folder=here)


def test_a_run_is_never_made_over_something(short_run: Path, here: Path) -> None:
    (here / "cfg.toml").write_text(config_text(), encoding="utf-8")
    shutil.copytree(short_run, here / "run")
    (here / "file").write_text("precious", encoding="utf-8")
    for out in ("run", "file", ".", ""):
        refused("run", "cfg.toml", "--out", out, says=("exists and is not empty", "another"), folder=here)
    refused("run", "cfg.toml", "--out", "file/below", *settings(*QUIET), says=("--out",), folder=here)
    refused("run", "cfg.toml", "--fail-on", "fatal", says=("--fail-on fatal: allowed are error",), folder=here)


def test_out_may_be_an_empty_folder(here: Path) -> None:
    (here / "cfg.toml").write_text(config_text(steps=1), encoding="utf-8")
    (here / "mine").mkdir()
    result = trainscope("run", "cfg.toml", "--out", "mine", *settings(*QUIET))
    assert (result.code, result.last_line) == (0, "mine")


def test_init_overwrites_nothing(here: Path) -> None:
    assert trainscope("init", "new").code == 0
    refused("init", "new", says=("new/cfg.toml exists",), folder=here)
    (here / "file").write_text("x", encoding="utf-8")
    refused("init", "file", says=("file/cfg.toml",), folder=here)
    refused("init", "file/below", says=("file/below/cfg.toml",), folder=here)


def test_what_init_writes_is_a_good_configuration(here: Path) -> None:
    trainscope("init")
    pictures(here / "images")
    assert trainscope("preflight", "cfg.toml", "--fail-on", "never").code == 0
    assert trainscope("run", "cfg.toml", *settings(*QUIET, "train.steps=1")).code == 0
