"""What users get wrong: one clear message that names the file or key, exit 2, nothing written, nothing overwritten."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.integration.commands import QUIET, SHAPES, config_text, digest, in_a_process, settings, trainscope

# ---- configurations


def refused(verb: str, *args: object, says: tuple[str, ...], folder: Path) -> str:
    """Run a command that must exit with 2, say `says`, and leave `folder` as it was."""
    before = digest(folder)
    result = trainscope(verb, *args)
    assert result.code == 2, (result.code, result.out, result.err)
    for text in says:
        assert text in result.message, result.message
    assert digest(folder) == before, "something was written"
    return result.message


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
        config_text("[lora]", "rnk = 3", 'alpha = "a"', "[ema]", "dcay = 1", 'enabled = "yes"', "[smaple]", "steps = 1"),
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
        ('optimizer.type = "prodigi": allowed are adamw, prodigy', "did you mean prodigy?"),
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
    """Whatever is cut out of, doubled in or swapped into a good configuration: exit 0, 1 or 2, and never a traceback."""
    rng, good = random.Random(0), config_text("[optimizer]", "betas = [0.9, 0.99]", "[sample]", 'prompts = ["a"]')
    pieces = ["[", "]", "=", '"', "\n", "inf", "-1", "{}", "[]", "true", "1e999", "'''", "[[x]]", "optimizer.type=3\n"]
    for _ in range(150):
        start = rng.randrange(len(good))
        text = good[:start] + rng.choice(pieces) + good[start + rng.randrange(12) :]
        (here / "cfg.toml").write_text(text, encoding="utf-8")
        result = trainscope("preflight", "cfg.toml", "--format", "json")
        assert result.code in (0, 1, 2), (text, result.err)
        assert result.code != 2 or result.message


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
    first = sorted(data.glob("*.png"))[0]
    (data / "broken.png").write_bytes(first.read_bytes()[:200])


def _empty_picture(data: Path) -> None:
    (data / "empty.png").touch()


def _caption_in_latin_1(data: Path) -> None:
    sorted(data.glob("*.txt"))[0].write_bytes("ein grüner Kreis".encode("latin-1"))


def _caption_missing(data: Path) -> None:
    sorted(data.glob("*.txt"))[0].unlink()


def _captions_shared(data: Path) -> None:
    first = sorted(data.glob("*.png"))[0]
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
    sorted(masks.glob("*.png"))[-1].write_bytes(content)
    (here / "cfg.toml").write_text(config_text(data=data.name), encoding="utf-8")
    changes = (*QUIET, "model.base=tiny:sd15-inpainting", "data.mask_dir=masks")
    name = sorted(masks.glob("*.png"))[-1].name
    refused("run", "cfg.toml", *settings(*changes), says=("1 of 4 masks", name), folder=here)


BAD_PARTS: dict[str, tuple[str, ...]] = {
    "model.base=nonsense": ("model.base = 'nonsense'", "no folder"),
    "model.base=tiny:sd9": ("sd9", "did you mean tiny:sd15?"),
    "model.base=owner/name": ("owner/name", "HF_HUB_OFFLINE"),
    "model.base=here.safetensors": ("here.safetensors", "single file"),
    "model.base=.": ("no diffusers pipeline", "model_index.json"),
    'lora.targets=["to_q", "nonsense"]': ("lora.targets", "'nonsense' matches no module"),
    "lora.targets=[]": ("lora.targets: no target is given",),
    "run.device=banana": ('run.device = "banana" cannot be used', 'run.device = "auto"'),
    "run.device=meta": ('run.device = "meta" cannot be used',),
    "run.device=cuda:99": ('run.device = "cuda:99" cannot be used',),
    "data.mask_dir=nope": ("nope does not exist", "data.mask_dir"),
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


# ---- run directories


def change_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


def _part(run: Path, table: str = "steps") -> Path:
    return sorted((run / "log" / table).glob("*.parquet"))[0]


def _cut(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def _zero(path: Path, start: int, end: int) -> None:
    content = bytearray(path.read_bytes())
    content[start:end] = bytes(len(content[start:end]))
    path.write_bytes(content)


def _rewrite(path: Path, **columns: Any) -> None:
    pq.write_table(pa.table(columns), path)


def _as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _as_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/nowhere")


def _as_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("x", encoding="utf-8")


RESOLVED = "segments/0/config.resolved.json"

DAMAGED: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "no run.json": (lambda run: (run / "run.json").unlink(), ("not a run directory", "run.json")),
    "half a run.json": (lambda run: _cut(run / "run.json", 0.5), ("run.json cannot be read",)),
    "an empty run.json": (lambda run: (run / "run.json").write_text(""), ("run.json cannot be read",)),
    "a binary run.json": (lambda run: (run / "run.json").write_bytes(b"\xff\xfe\x00"), ("run.json cannot be read",)),
    "run.json is a list": (lambda run: (run / "run.json").write_text("[]"), ("run.json", "no format number")),
    "run.json is a folder": (lambda run: _as_folder(run / "run.json"), ("run.json cannot be read",)),
    "a newer format": (lambda run: change_json(run / "run.json", format=99), ("run.json", "format 99", "upgrade")),
    "format as text": (lambda run: change_json(run / "run.json", format="1"), ("no format number",)),
    "format as truth": (lambda run: change_json(run / "run.json", format=True), ("no format number",)),
    "an unknown status": (lambda run: change_json(run / "run.json", status="fine"), ("run.json is damaged", "fine")),
    "segments of nothing": (lambda run: change_json(run / "run.json", segments=[{}]), ("run.json is damaged",)),
    "segments of numbers": (lambda run: change_json(run / "run.json", segments=[3]), ("run.json is damaged",)),
    "no segments in run.json": (lambda run: change_json(run / "run.json", segments=None), ("run.json is damaged",)),
    "a segment elsewhere": (
        lambda run: change_json(run / "run.json", segments=[{"number": "../../x", "start_step": 0}]),
        ("run.json is damaged",),
    ),
    "a truncated part": (lambda run: _cut(_part(run), 0.5), ("log/steps/s0-r0-000000.parquet is damaged",)),
    "a part's last byte": (lambda run: _cut(_part(run, "params"), 0.9999), ("log/params/", "is damaged")),
    "an empty part": (lambda run: _cut(_part(run, "tensors"), 0), ("log/tensors/", "is damaged")),
    "a zeroed part": (lambda run: _zero(_part(run, "config"), 0, 10**9), ("log/config/", "is damaged")),
    "a part with a hole": (lambda run: _zero(_part(run), 100, 200), ("log/steps/", "is damaged")),
    "a part of another type": (lambda run: _rewrite(_part(run), step=["1"]), ("log/steps/", "step is string")),
    "a part that is a folder": (lambda run: _as_folder(_part(run)), ("log/steps/", "is damaged")),
    "a part that leads nowhere": (lambda run: _as_link(_part(run)), ("log/steps/", "is damaged")),
    "a table that is a file": (lambda run: _as_file(run / "log/groups"), ("log/groups is damaged",)),
}

DAMAGED_FOR_AUDITS: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "no segment yet": (lambda run: change_json(run / "run.json", segments=[]), ("no segment", "before the training")),
    "segments missing": (lambda run: shutil.rmtree(run / "segments"), (f"{RESOLVED} cannot be read",)),
    "a segment's folder missing": (lambda run: shutil.rmtree(run / "segments/0"), (f"{RESOLVED} cannot be read",)),
    "resolved missing": (lambda run: (run / RESOLVED).unlink(), (f"{RESOLVED} cannot be read",)),
    "resolved empty": (lambda run: (run / RESOLVED).write_text(""), (f"{RESOLVED} is damaged",)),
    "half of resolved": (lambda run: _cut(run / RESOLVED, 0.5), (f"{RESOLVED} is damaged",)),
    "resolved is a list": (lambda run: (run / RESOLVED).write_text("[]"), (f"{RESOLVED} is damaged",)),
    "resolved without keys": (lambda run: (run / RESOLVED).write_text("{}"), (f"{RESOLVED} is damaged",)),
    "resolved with odd keys": (lambda run: (run / RESOLVED).write_text('{"keys": [{}]}'), (f"{RESOLVED} is damaged",)),
    "resolved with an odd path": (
        lambda run: change_json(run / RESOLVED, path=3),
        (f"{RESOLVED} is damaged",),
    ),
    "config.toml missing": (lambda run: (run / "segments/0/config.toml").unlink(), ("config.toml cannot be read",)),
    "config.toml in Latin-1": (
        lambda run: (run / "segments/0/config.toml").write_bytes(b"\xe9"),
        ("config.toml cannot be read",),
    ),
}


def commands(run: Path) -> list[tuple[object, ...]]:
    return [
        ("audit", run),
        ("audit", run, "--format", "json", "--output", "-"),
        ("fix", run, "--output", run.parent / "fixed.toml"),
        ("sql", run, "SELECT count(*) FROM steps"),
    ]


@pytest.mark.parametrize(("damage", "says"), DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_run(damage: Callable[[Path], object], says: tuple[str, ...], own_run: Path) -> None:
    damage(own_run)
    for command in commands(own_run):
        message = refused(str(command[0]), *command[1:], says=says, folder=own_run.parent)
        assert str(own_run) in message


@pytest.mark.parametrize(("damage", "says"), DAMAGED_FOR_AUDITS.values(), ids=DAMAGED_FOR_AUDITS.keys())
def test_a_run_whose_segment_is_damaged(damage: Callable[[Path], object], says: tuple[str, ...], own_run: Path) -> None:
    damage(own_run)
    for command in commands(own_run)[:3]:
        refused(str(command[0]), *command[1:], says=says, folder=own_run.parent)


@pytest.mark.parametrize("what", ["nothing", "a folder", "a file"])
def test_what_is_no_run(what: str, here: Path) -> None:
    run = here / "thing"
    if what == "a folder":
        run.mkdir()
    elif what == "a file":
        run.write_text("x", encoding="utf-8")
    says = (str(run), "no such run" if what == "nothing" else "not a run directory")
    for command in commands(run):
        refused(str(command[0]), *command[1:], says=says, folder=here)


def test_leftovers_of_a_crash_are_ignored(own_run: Path) -> None:
    whole = trainscope("sql", own_run, "SELECT count(*), sum(step) FROM steps").out
    folder = _part(own_run).parent
    (folder / ".s0-r0-000099.parquet.1234.tmp").write_bytes(b"half")
    (folder / "s0-r0-000098.parquet.tmp").write_bytes(b"half")
    (own_run / ".run.json.1234.tmp").write_bytes(b"half")
    (own_run / "checkpoints" / ".step-00000010.1234.tmp").mkdir(parents=True)
    assert trainscope("sql", own_run, "SELECT count(*), sum(step) FROM steps").out == whole
    assert trainscope("audit", own_run, "--fail-on", "never").code == 0


def test_a_log_that_is_not_there_is_not_observable(own_run: Path) -> None:
    """Silence means something: without a log no rule says "clear"."""
    shutil.rmtree(own_run / "log")
    result = trainscope("audit", own_run)
    assert result.code == 0
    assert "Nothing was looked at" in result.out
    assert trainscope("audit", own_run, "--strict").code == 1
    report = json.loads((own_run / "report.json").read_text(encoding="utf-8"))
    assert {rule["outcome"] for rule in report["rules"]} <= {"not_observable", "not_applicable"}


def test_a_flipped_bit_is_found(own_run: Path) -> None:
    """A bit flipped anywhere in a Parquet file never makes another number, but in its description of itself."""
    part, rng = _part(own_run), random.Random(0)
    whole, query = part.read_bytes(), "SELECT * FROM steps ORDER BY step"
    numbers = trainscope("sql", own_run, query).out
    other = 0
    for _ in range(120):
        broken = bytearray(whole)
        broken[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        part.write_bytes(broken)
        result = trainscope("sql", own_run, query)
        assert result.code in (0, 2), result.err
        assert result.code == 0 or str(part) in result.message
        other += result.code == 0 and result.out != numbers
    assert other <= 6, f"{other} of 120 damaged files gave other numbers"


# ---- options


BAD_OPTIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "an unknown format": (("--format", "xml"), ("--format xml: allowed are html, json",)),
    "one unknown format": (("--format", "json,xml"), ("--format json,xml: allowed are html",)),
    "no format": (("--format", ""), ("--format",)),
    "an unknown level": (("--fail-on", "fatal"), ("--fail-on fatal: allowed are error, warning, info, never",)),
    "an unknown code": (("--select", "ZZZ"), ("--select ZZZ: no rule begins so",)),
    "a code in small letters": (("--select", "prec001"), ("--select prec001: no rule begins so",)),
    "two unknown codes": (("--select", "ZZZ", "--ignore", "YYY"), ("--select ZZZ", "--ignore YYY")),
    "a folder below a file": (("--output", "file/below"), ("--output file/below",)),
    "a folder that is a file": (("--output", "file"), ("--output file",)),
    "a file below a file": (("--output", "file/r.json"), ("file/r.json",)),
    "a file that is a folder": (("--output", "folder.json"), ("folder.json",)),
    "a file in no folder": (("--output", "nope/r.json"), ("nope/r.json",)),
    "another format's file": (("--output", "r.html", "--format", "json"), ("r.html is not a json file",)),
    "two formats on stdout": (("--output", "-", "--format", "json,html"), ("--output - takes exactly one",)),
    "rules that are not there": (("--rules", "nope"), ("nope", "no such folder of rules")),
    "rules in a file": (("--rules", "file"), ("file", "no such folder of rules")),
    "a folder without rules": (("--rules", "folder.json"), ("folder.json", "no rules in it")),
    "an unknown option": (("--nonsense",), ("No such option: --nonsense", "trainscope audit --help")),
}


@pytest.mark.parametrize(("options", "says"), BAD_OPTIONS.values(), ids=BAD_OPTIONS.keys())
def test_a_bad_option_of_audit(
    options: tuple[str, ...], says: tuple[str, ...], own_run: Path, here: Path
) -> None:
    (here / "file").write_text("precious", encoding="utf-8")
    (here / "folder.json").mkdir()
    refused("audit", own_run, *options, says=says, folder=own_run.parent)


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (("audit",), ("RUN", "trainscope audit --help")),
        (("nope",), ("No such command 'nope'", "trainscope --help")),
        (("run", "a.toml", "b.toml"), ("b.toml",)),
        (("preflight", "cfg.toml", "--format", "xml"), ("--format xml: allowed are console, json",)),
        (("config", "show", "trian.steps"), ("unknown key: trian.steps", "did you mean train.steps?")),
        (("config", "show", "zzz"), ("unknown key: zzz", "trainscope config show")),
        (("rules", "list", "--format", "xml"), ("--format xml: allowed are console, json",)),
        (("rules", "show", "PREC0001"), ("no rule PREC0001", "did you mean PREC001?")),
        (("rules", "validate", "nope"), ("nope", "no such folder of rules")),
        (("rules", "test", "nope"), ("nope", "no such folder of rules")),
        (("prove", "NOPE"), ("no rule has the code NOPE",)),
        (("rules", "new", "bad", "a-name", "--family", "ema"), ("code bad", "EMA007")),
        (("rules", "new", "EMA777", "Bad Name", "--family", "ema"), ("name Bad Name",)),
        (("rules", "new", "EMA777", "../../x", "--family", "ema"), ("name ../../x",)),
        (("rules", "new", "EMA777", "a-name", "--family", "../../x"), ("--family ../../x",)),
        (("rules", "new", "EMA777", "a-name", "--family", "ema", "--root", "file"), ("file", "--root")),
        (("rules", "new", "EMA777", "a-name"), ("--family", "trainscope rules new --help")),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_bad_arguments(command: tuple[str, ...], says: tuple[str, ...], here: Path) -> None:
    (here / "cfg.toml").write_text(config_text(), encoding="utf-8")
    (here / "file").write_text("x", encoding="utf-8")
    refused(command[0], *command[1:], says=says, folder=here)


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("", "0 statements"),
        ("SELECT", "does not parse"),
        ("SELECT * FROM nope", "no table nope"),
        ("SELECT * FROM step", "did you mean steps?"),
        ("SELECT nope FROM steps", '"nope" not found'),
        ("SELECT 1; SELECT 2", "2 statements"),
        ("COPY steps TO 'stolen.parquet'", "COPY"),
        ("WITH x AS (COPY steps TO 'stolen') SELECT 1", "COPY"),
        ("DROP TABLE steps", "DROP"),
        ("ATTACH 'x.db'", "ATTACH"),
        ("SELECT * FROM read_text('/etc/passwd')", "read_text"),
        ("SELECT * FROM '/etc/passwd'", "/etc/passwd"),
        ("SELECT CAST('x' AS INTEGER) FROM steps", "Conversion Error"),
        ("SELECT * FROM range(200000)", "more than 100000 rows"),
    ],
)
def test_sql_reads_the_run_and_nothing_else(query: str, says: str, own_run: Path, here: Path) -> None:
    refused("sql", own_run, query, says=(says,), folder=own_run.parent)


def test_fix_overwrites_nothing(faulty_run: Path, here: Path) -> None:
    assert trainscope("fix", faulty_run).code == 0
    assert (here / "cfg.fixed.toml").exists()
    refused("fix", faulty_run, says=("cfg.fixed.toml exists", "--output"), folder=here)
    refused("fix", faulty_run, "--output", "nope/f.toml", says=("nope/f.toml",), folder=here)
    refused("fix", faulty_run, "--output", ".", says=("exists",), folder=here)


def test_an_audit_replaces_the_reports_only(own_run: Path) -> None:
    reports = ("report.json", "report.html")
    before = digest(own_run, ignore=reports)
    trainscope("audit", own_run)
    trainscope("audit", own_run)
    assert digest(own_run, ignore=reports) == before
    assert all((own_run / name).stat().st_size > 100 for name in reports)


def test_standard_output_holds_the_report_and_nothing_else(short_run: Path) -> None:
    result = trainscope("audit", short_run, "--format", "json", "--output", "-", "--fail-on", "never")
    assert (result.code, result.err) == (0, "")
    assert json.loads(result.out)["verdict"]


# ---- rules that strangers wrote


@pytest.fixture
def own_rule(here: Path) -> Path:
    """A sound rule of the user's own that looks at every run."""
    result = trainscope("rules", "new", "OWN001", "loss-too-high", "--family", "own", "--root", "mine")
    assert result.code == 0, result.err
    folder = here / "mine" / "own" / "OWN001-loss-too-high"
    header = folder / "rule.toml"
    text = header.read_text(encoding="utf-8").replace('{ "steps.loss" = { min_steps = 50 } }', "{}")
    header.write_text(text.replace("… {value:.3g} …", "loss {value:.3g}"), encoding="utf-8")
    return folder


def outcomes(run: Path, *options: object) -> tuple[int | None, dict[str, dict[str, Any]]]:
    result = trainscope("audit", run, "--format", "json", "--output", "-", "--fail-on", "never", *options)
    assert result.err == "", result.err
    return result.code, {rule["code"]: rule for rule in json.loads(result.out)["rules"]}


@pytest.fixture(scope="session")
def others(short_run: Path) -> dict[str, str]:
    """What trainscope's own rules say of the short run."""
    return {code: rule["outcome"] for code, rule in outcomes(short_run)[1].items()}


def test_a_rule_of_ones_own(own_rule: Path, short_run: Path) -> None:
    code, found = outcomes(short_run, "--rules", "mine")
    assert (code, found["OWN001"]["outcome"]) == (0, "fired")


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("check.sql", "SELECT CAST('x' AS INTEGER) AS value FROM steps", "Conversion Error"),
        ("check.sql", "SELECT error('boom') AS value FROM steps", "boom"),
        ("check.sql", "SELECT nope FROM steps", "nope"),
        ("check.sql", "SELECT * FROM nope", "no table nope"),
        ("check.sql", "SELEC 1", "does not parse"),
        ("check.sql", "COPY steps TO 'stolen.parquet'", "COPY"),
        ("check.sql", "SELECT 1; DROP TABLE steps", "2 statements"),
        ("check.sql", "SELECT value FROM steps WHERE loss > $nope", "$nope"),
        ("rule.toml", "[[[", "not TOML"),
        ("rule.toml", 'code = "OWN001"', "rule.toml"),
        ("README.md", "# nothing", "no heading"),
    ],
    ids=["cast", "error()", "column", "table", "syntax", "copy", "two", "parameter", "toml", "header", "readme"],
)
def test_a_broken_rule_is_its_own_problem(
    file: str, content: str, says: str, own_rule: Path, own_run: Path, others: dict[str, str]
) -> None:
    (own_rule / file).write_text(content, encoding="utf-8")
    before = digest(own_run.parent)
    code, found = outcomes(own_run, "--rules", "mine")
    assert code == 3
    assert found["OWN001"]["outcome"] == "crashed"
    assert says in found["OWN001"]["reason"]
    assert {code: rule["outcome"] for code, rule in found.items() if code != "OWN001"} == others
    assert digest(own_run.parent) == before


def test_a_crashed_rule_is_shown_and_can_be_ignored(own_rule: Path, own_run: Path) -> None:
    (own_rule / "check.sql").write_text("SELECT error('boom') AS value FROM steps", encoding="utf-8")
    shown = trainscope("audit", own_run, "--rules", "mine", "--format", "console", "--fail-on", "never")
    assert shown.code == 3
    assert "OWN001" in shown.out
    assert "Traceback" not in shown.out + shown.err
    assert trainscope("audit", own_run, "--rules", "mine", "--ignore", "OWN001", "--fail-on", "never").code == 0


def test_a_rule_may_not_take_the_code_of_another(own_rule: Path, short_run: Path, here: Path) -> None:
    taken = own_rule.with_name("PREC001-loss-too-high")
    shutil.move(own_rule, taken)
    header = taken / "rule.toml"
    header.write_text(header.read_text(encoding="utf-8").replace("OWN001", "PREC001"), encoding="utf-8")
    refused("rules", "validate", "mine", says=("PREC001 is taken",), folder=here)


# ---- what a log is too short for


def test_a_log_that_is_too_short_says_so(short_run: Path) -> None:
    code, found = outcomes(short_run)
    blind = {name: rule["reason"] for name, rule in found.items() if rule["outcome"] == "not_observable"}
    assert code == 0
    assert blind
    assert any("at least 20 steps; recorded over 11" in reason for reason in blind.values()), blind
    assert all(reason for reason in blind.values())
    assert trainscope("audit", short_run, "--strict", "--fail-on", "never").code == 1


def test_a_table_that_was_not_asked_for_says_so() -> None:
    from trainscope.proof.runs import RunSpec, make_run

    _, found = outcomes(make_run(RunSpec({"train.steps": 12, "eval.every_steps": 6, "probes.tables": []})))
    assert found["PREC001"]["outcome"] in ("not_observable", "not_applicable")
    assert any("probes.tables" in rule["reason"] for rule in found.values() if rule["outcome"] == "not_observable")


# ---- as real processes


def test_as_processes(short_run: Path, own_rule: Path, here: Path) -> None:
    """The same through a shell: exit codes, both streams, no traceback."""
    (here / "cfg.toml").write_text(config_text("[lora]", "rnk = 3"), encoding="utf-8")
    refusals: list[tuple[tuple[object, ...], str]] = [
        (("run", "cfg.toml"), "did you mean lora.rank?"),
        (("audit", "nope"), "no such run: nope"),
        (("run", "cfg.toml", "--nonsense"), "--nonsense"),
        (("sql", short_run, "COPY steps TO 'stolen'"), "COPY"),
    ]
    for command, says in refusals:
        result = in_a_process(*command, cwd=here)
        assert (result.code, result.out) == (2, ""), (command, result)
        assert says in result.message
    (own_rule / "check.sql").write_text("SELECT error('boom') AS value FROM steps", encoding="utf-8")
    crashed = in_a_process(
        "audit", short_run, "--rules", "mine", "--format", "json", "--output", "-", "--fail-on", "never", cwd=here
    )
    assert (crashed.code, crashed.err) == (3, "")
    assert json.loads(crashed.out)["rules"]


def test_the_traceback_is_there_for_those_who_ask(here: Path) -> None:
    result = in_a_process("--debug", "audit", "nope", cwd=here)
    assert result.code == 2
    assert "Traceback" in result.err
    assert "RunError" in result.err
    assert result.err.splitlines()[-2].startswith("error: no such run")
