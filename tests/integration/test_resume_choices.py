"""What a resumed training may change takes effect as asked; what it may not is refused, and nothing is touched."""

from __future__ import annotations

import json
import math
import re
import shlex
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.integration.commands import bits, digest, refused, settings, trainscope
from tests.integration.resuming import (
    BLIND,
    LORA,
    SMALL,
    Signal,
    Values,
    assert_continued,
    assert_same_training,
    differences,
    killed,
    odd,
    resolved,
    rows,
    statuses,
    surviving,
    trained,
    warnings,
)
from trainscope.errors import ConfigError
from trainscope.proof.runs import changed_base, config_text
from trainscope.runlog.fingerprint import read_fingerprint
from trainscope.runlog.reader import read_run
from trainscope.runlog.rundir import RunDir
from trainscope.trainer.callbacks import Callback
from trainscope.trainer.checkpoints.folder import LORA_FILE, whole_checkpoints
from trainscope.trainer.session import Session

STEPS, STOP = 8, 4
QUICK: Values = {**SMALL, **LORA, **BLIND, "train.steps": STEPS}


@pytest.fixture(scope="module")
def places(few: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A folder with a cfg.toml and, in runs/it, a run of it that was stopped half way. Made once; read only."""
    made: dict[str, Path] = {}

    def place(*changes: Values, stop_at: int = STOP) -> Path:
        values = {key: value for part in ({"data.dir": str(few)}, QUICK, *changes) for key, value in part.items()}
        key = repr((sorted(values.items()), stop_at))
        if key not in made:
            folder = tmp_path_factory.mktemp("place")
            (folder / "cfg.toml").write_text(config_text(changed_base(values)), encoding="utf-8")
            trained(resolved(few, QUICK, *changes), folder / "runs" / "it", stop_at=stop_at)
            made[key] = folder
        return made[key]

    return place


@pytest.fixture
def place(places: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """The same, of a test's own, and the working directory."""

    def own(*changes: Values, stop_at: int = STOP) -> Path:
        folder = Path(shutil.copytree(places(*changes, stop_at=stop_at), tmp_path / "place"))
        monkeypatch.chdir(folder)
        return folder

    return own


Place = Callable[..., Path]


def resume(*changes: str, wanted: object = "latest", options: tuple[str, ...] = ()) -> Path:
    """`trainscope run cfg.toml --resume …` to its end; the run that it went on in."""
    result = trainscope("run", "cfg.toml", "--resume", wanted, "--no-audit", *options, *settings(*changes))
    assert result.code == 0, result.err
    return Path(result.last_line).absolute()


def refusal(*changes: str, says: tuple[str, ...], wanted: object = "latest", options: tuple[str, ...] = ()) -> str:
    command = ("cfg.toml", "--resume", wanted, "--no-audit", *options, *settings(*changes))
    return refused("run", *command, says=says, folder=Path.cwd())


def groups(run: Path) -> list[Values]:
    """The surviving rows of the run's one group, by step."""
    starts = {segment["number"]: segment["start_step"] for segment in RunDir(run).read()["segments"]}
    return sorted(surviving(rows(run, "groups"), starts), key=lambda row: row["step"])


def newest(run: Path) -> Path:
    return whole_checkpoints(RunDir(run))[-1]


def trained_weights(checkpoint: Path) -> dict[str, bytes]:
    return {name: bits(tensor) for name, tensor in load_file(checkpoint / "state" / "trained.safetensors").items()}


# ---- learning rates

Shape = Callable[[int, int, int], float]


def constant(done: int, steps: int, warmup: int) -> float:
    return 1.0


def rising(done: int, steps: int, warmup: int) -> float:
    return min(1.0, done / warmup)


def cosine(done: int, steps: int, warmup: int) -> float:
    return done / warmup if done < warmup else 0.5 * (1 + math.cos(math.pi * (done - warmup) / (steps - warmup)))


SCHEDULES: dict[str, tuple[Shape, Values]] = {
    "constant": (constant, {}),
    "constant-with-warmup": (rising, {"scheduler.type": "constant-with-warmup", "scheduler.warmup": 6.0}),
    "cosine": (cosine, {"scheduler.type": "cosine", "scheduler.warmup": 2.0}),
    "warmup by share": (cosine, {"scheduler.type": "cosine", "scheduler.warmup": 0.25}),
}
WARMUPS = {"constant": (0, 0, 0), "constant-with-warmup": (6, 6, 6), "cosine": (2, 2, 2), "warmup by share": (2, 2, 3)}
"""In steps: of the saved schedule, of a new one over the 8 steps that are left to 12, of one over all 12."""


def expected(shape: Shape, schedule: tuple[int, int], begun: int, steps: int, lr: float = 1e-3) -> list[float]:
    """Learning rates of the steps from STOP + 1 to `steps`; the schedule's length and warmup, and where it began."""
    return [lr * shape(step - 1 - begun, *schedule) for step in range(STOP + 1, steps + 1)]


def check_rates(run: Path, name: str, wanted: list[float]) -> None:
    shape, _ = SCHEDULES[name]
    found = [row["lr"] for row in groups(run)]
    before = [1e-3 * shape(step, STEPS, WARMUPS[name][0]) for step in range(STOP)]
    assert found == pytest.approx([*before, *wanted], rel=1e-12, abs=1e-18)


@pytest.mark.parametrize("name", SCHEDULES)
def test_continue(name: str, place: Place) -> None:
    """The saved schedule goes on as it was; a learning rate that is asked for is multiplied by it."""
    shape, changes = SCHEDULES[name]
    folder = place(changes)
    run = resume("optimizer.lr=0.004")
    check_rates(run, name, expected(shape, (STEPS, WARMUPS[name][0]), 0, STEPS, lr=4e-3))
    assert [row["base_lr"] for row in groups(run)] == [1e-3] * STOP + [4e-3] * (STEPS - STOP)
    assert run == folder / "runs" / "it"
    asked = [row for row in rows(run, "continuity") if row["asked"] is not None]
    assert {(row["item"], row["key"]) for row in asked} >= {("group", "lr"), ("scheduler", "base_lr")}
    assert all(row["asked"] == row["loaded"] for row in asked)
    (told,) = [row for row in asked if row["item"] == "config"]
    assert (told["key"], told["saved"], told["asked"]) == ("optimizer.lr", "0.001", "0.004")


@pytest.mark.parametrize("name", SCHEDULES)
def test_restart(name: str, place: Place) -> None:
    shape, changes = SCHEDULES[name]
    place(changes)
    run = resume('scheduler.on_resume="restart"', "train.steps=12")
    check_rates(run, name, expected(shape, (12 - STOP, WARMUPS[name][1]), STOP, 12))


@pytest.mark.parametrize("name", SCHEDULES)
def test_extend(name: str, place: Place) -> None:
    shape, changes = SCHEDULES[name]
    place(changes)
    run = resume('scheduler.on_resume="extend"', "train.steps=12", "optimizer.lr=0.002")
    check_rates(run, name, expected(shape, (12, WARMUPS[name][2]), 0, 12, lr=2e-3))


@pytest.mark.parametrize("choice", ["restart", "extend"])
def test_another_schedule(choice: str, place: Place) -> None:
    place()
    run = resume(f'scheduler.on_resume="{choice}"', 'scheduler.type="cosine"', "scheduler.warmup=1")
    length, begun = (STEPS - STOP, STOP) if choice == "restart" else (STEPS, 0)
    check_rates(run, "constant", expected(cosine, (length, 1), begun, STEPS))


def test_a_shorter_training_keeps_the_saved_schedule(place: Place) -> None:
    place(SCHEDULES["cosine"][1])
    run = resume("train.steps=6")
    check_rates(run, "cosine", expected(cosine, (STEPS, 2), 0, 6))


@pytest.mark.parametrize("name", ["constant", "constant-with-warmup"])
def test_what_never_ends_can_go_on_longer(name: str, place: Place) -> None:
    shape, changes = SCHEDULES[name]
    place(changes)
    run = resume("train.steps=12")
    check_rates(run, name, expected(shape, (STEPS, 6), 0, 12))


def test_a_schedule_goes_on_as_it_was_at_a_second_resume(place: Place) -> None:
    """What the second checkpoint holds is the restarted schedule, not the one of the configuration."""
    place(SCHEDULES["cosine"][1])
    restart = ('scheduler.on_resume="restart"', "train.steps=12")
    config = resolved(Path(_value("data.dir")), QUICK, SCHEDULES["cosine"][1], {"train.steps": 12})
    run = Path("runs/it")
    again = resolved(Path(_value("data.dir")), QUICK, SCHEDULES["cosine"][1], dict(map(_pair, restart)))
    trained(again, run, resume="latest", stop_at=7)
    trained(config, run, resume="latest")
    check_rates(run, "cosine", expected(cosine, (8, 2), STOP, 12))


def _value(key: str) -> str:
    """A key of the working directory's cfg.toml."""
    from trainscope.config.load import load_config

    return str({name: value for name, value, _ in load_config(Path("cfg.toml")).rows()}[key])


def _pair(text: str) -> tuple[str, Any]:
    from trainscope.config.load import parse_override

    return parse_override(text)


FREE: Values = {"optimizer.type": "adamw-schedulefree", "optimizer.lr": 1e-3}


@pytest.mark.parametrize("warmup", [6.0, 0.75], ids=["steps", "share"])
@pytest.mark.parametrize(
    ("changes", "steps", "own", "lr"),
    [
        ((), 8, (6, 6), 1e-3),
        (("optimizer.lr=0.004",), 8, (6, 6), 4e-3),
        (("train.steps=12",), 12, (6, 6), 1e-3),
        (('scheduler.on_resume="extend"', "train.steps=12"), 12, (6, 9), 1e-3),
    ],
    ids=["same", "lr", "longer", "extend"],
)
def test_schedule_free_warms_up_by_itself(
    changes: tuple[str, ...], steps: int, own: tuple[int, int], lr: float, warmup: float, place: Place
) -> None:
    """Step n has lr · min(1, n / warmup), by its own counter; `own` is the warmup given in steps, and as a share."""
    place(FREE, {"scheduler.warmup": warmup})
    run = resume(*changes)
    found = [row["scheduled_lr"] for row in groups(run)]
    after = own[warmup < 1]
    before = [1e-3 * min(1, step / 6) for step in range(1, STOP + 1)]
    wanted = [*before, *(lr * min(1, step / after) for step in range(STOP + 1, steps + 1))]
    assert found == pytest.approx(wanted, rel=1e-12)
    assert [row["k"] for row in groups(run)] == list(range(1, steps + 1))


def test_schedule_free_under_a_schedule_has_both(place: Place) -> None:
    place(FREE, {"scheduler.type": "cosine", "scheduler.warmup": 6.0})
    run = resume('scheduler.on_resume="restart"', "train.steps=12")
    lrs = [1e-3 * cosine(step, STEPS, 0) for step in range(STOP)] + expected(cosine, (8, 0), STOP, 12)
    assert [row["lr"] for row in groups(run)] == pytest.approx(lrs, rel=1e-12)
    own = [lr * min(1, step / 6) for step, lr in enumerate(lrs, start=1)]
    assert [row["scheduled_lr"] for row in groups(run)] == pytest.approx(own, rel=1e-12)


# ---- other keys that are applied


def test_keys_that_take_effect_at_once(place: Place, few: Path) -> None:
    place()
    changed = {
        "optimizer.weight_decay": 0.5,
        "optimizer.eps": 1e-6,
        "train.max_grad_norm": 1e-3,
        "train.gradient_accumulation": 2,
        "lora.dropout": 0.5,
        "train.steps": 9,
    }
    run = resume(*(f"{key}={value}" for key, value in changed.items()))
    found = groups(run)
    assert [row["weight_decay"] for row in found] == [0.01] * STOP + [0.5] * 5
    assert [row["eps"] for row in found] == [1e-8] * STOP + [1e-6] * 5
    steps = sorted(rows(run, "steps"), key=lambda row: row["step"])
    assert [row["micro_steps"] for row in steps] == [1] * STOP + [2] * 5
    assert [row["step"] for row in steps if row["clip_coef"] < 0.1] == [5, 6, 7, 8, 9]
    # The data goes on where it stood: each position once, in order.
    positions = sorted({row["position"] for row in rows(run, "order")})
    assert positions == list(range(STOP + 2 * 5))
    told = {row["key"]: row for row in rows(run, "continuity") if row["item"] == "config"}
    assert told.keys() == changed.keys()
    assert {key: json.loads(row["asked"]) for key, row in told.items()} == changed
    assert {row["status"] for row in told.values()} == {"changed"}
    (event,) = [row for row in rows(run, "events") if row["kind"] == "resume"]
    assert {change["key"]: change["asked"] for change in json.loads(event["detail"])["changed"]} == changed
    # Of the state, nothing else differs.
    others = {name for name in odd(run) if name[0] != "config"}
    assert {name[2] for name in others} == {"weight_decay", "eps"}


def test_an_average_that_is_switched_on_begins_at_the_weights(place: Place, few: Path) -> None:
    place()
    before = trained_weights(newest(Path("runs/it")))
    begun: dict[str, bytes] = {}

    class Look(Callback):
        def before_backward(self, session: Session) -> None:
            assert session.ema is not None
            for (name, _), shadow in zip(session.params.items(), session.ema.shadow_params, strict=True):
                begun.setdefault(name, bits(shadow))

    config = resolved(few, QUICK, {"ema.enabled": True})
    left = trained(config, Path("runs/it"), Look(), resume="latest")
    assert begun == before
    assert not warnings(left.run, 1), "the checkpoint lacks nothing: there was no average"
    assert (left.finished.checkpoint / "weights-ema" / LORA_FILE).exists()


def test_an_average_that_is_switched_off_is_gone(place: Place) -> None:
    place({"ema.enabled": True})
    run = resume("ema.enabled=false")
    assert not (newest(run) / "weights-ema").exists()
    assert {status for (item, _, _), status in statuses(run).items() if item == "ema"} == {"missing"}


@pytest.mark.parametrize("seed", [-1, 1])
def test_a_seed_that_was_drawn_stays(seed: int, place: Place) -> None:
    place({"run.seed": -1})
    run = Path("runs/it")
    drawn = json.loads((newest(run) / "state" / "training.json").read_text(encoding="utf-8"))["seed"]
    if seed != -1:
        refusal(f"run.seed={seed}", says=(f"run.seed = {seed}: was {drawn}: ", f"leave it at {drawn}, or -1"))
        resume(f"run.seed={drawn}")
    else:
        resume()
    rows_ = {row["key"]: row["value"] for row in read_run(run).config_rows()}
    assert rows_["run.seed"] == drawn
    assert {name for name in odd(run) if name[0] != "config"} == set()


# ---- refusals

WEIGHTS = f"runs/it/checkpoints/step-{STOP:08d}/weights/{LORA_FILE}"
NEW_RUN = 'start a new run from the weights, with lora.init_from = "'
RESCHEDULE = 'set scheduler.on_resume = "restart"'


@pytest.mark.parametrize(
    ("made", "change", "says"),
    [
        ({}, "run.seed=2", ("run.seed = 2: was 1: noise and the order", "leave it at 1, or -1")),
        ({}, "train.batch_size=3", ("train.batch_size = 3: was 2: ", "counted in batches", NEW_RUN)),
        ({}, "lora.rank=8", ("lora.rank = 8: was 4: ", "another shape", "trainscope lora resize", "--rank 8")),
        ({}, "lora.alpha=8", ("lora.alpha = 8.0: was 4.0: ", "another strength", "--alpha 8", "lora.init_from")),
        ({}, 'lora.targets=["to_q"]', ("lora.targets = ", "to_q", "to_out.0", "other modules", NEW_RUN)),
        ({}, 'optimizer.type="lion"', ('optimizer.type = "lion": was "adamw": another optimizer', NEW_RUN)),
        ({}, "optimizer.betas=[0.8, 0.9]", ("optimizer.betas = [0.8, 0.9]: was [0.9, 0.999]: ", NEW_RUN)),
        ({"optimizer.type": "prodigy"}, "optimizer.d0=1e-5", ("optimizer.d0 = 1e-05: was 1e-06: ", NEW_RUN)),
        (
            {"optimizer.type": "adamw8bit"},
            "optimizer.min_8bit_size=1024",
            ("optimizer.min_8bit_size = 1024: was 4096", NEW_RUN),
        ),
        (FREE, "optimizer.r=1.0", ("optimizer.r = 1.0: was 0.0: ", NEW_RUN)),
        ({}, 'precision.weights="bf16"', ('precision.weights = "bf16": was "fp32": ', "other format", NEW_RUN)),
        (
            {"precision.weights": "bf16"},
            "precision.stochastic_rounding=true",
            ("precision.stochastic_rounding = True: was False: ", NEW_RUN),
        ),
        ({}, 'model.base="tiny:sd15-inpainting"', ("model.base = ", 'was "tiny:sd15": ', "changes of that model")),
        ({}, 'train.method="finetune"', ('train.method = "finetune": was "lora": ',)),
        ({}, 'scheduler.type="cosine"', ('scheduler.type = "cosine": was "constant": ', RESCHEDULE, '"extend"')),
        (SCHEDULES["cosine"][1], "scheduler.warmup=1", ("scheduler.warmup = 1.0: was 2.0: ", RESCHEDULE)),
        (
            SCHEDULES["cosine"][1],
            "train.steps=12",
            ("train.steps: the saved cosine schedule ends at step 8", "go on to 12", RESCHEDULE, '"extend"'),
        ),
        (FREE, "scheduler.warmup=2", ("scheduler.warmup = 2.0: was 0.0: ", RESCHEDULE)),
        ({}, "train.steps=4", ("train.steps = 4", "already has 4 steps", "raise it")),
        ({}, "train.steps=3", ("train.steps = 3", "already has 4 steps", "raise it")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_change_that_cannot_be_applied(made: Values, change: str, says: tuple[str, ...], place: Place) -> None:
    place({key: value for key, value in made.items() if key != "optimizer.lr"})
    message = refusal(change, says=says)
    if "init_from" in message:
        assert str(Path(WEIGHTS).absolute()) in message


def test_all_refusals_at_once(place: Place) -> None:
    place()
    changes = (
        "lora.rank=8",
        "run.seed=2",
        "train.batch_size=1",
        'scheduler.type="cosine"',
        "optimizer.betas=[0.8,0.9]",
    )
    message = refusal(*changes, "optimizer.lr=1.0", says=tuple(change.partition("=")[0] for change in changes))
    assert len([line for line in message.splitlines() if ": was " in line]) == len(changes)
    assert "optimizer.lr" not in message, "that one can be applied"


def test_a_schedule_may_change_where_it_does_not_continue(place: Place) -> None:
    """Every way that a refusal names is open."""
    place(SCHEDULES["cosine"][1])
    refusal("train.steps=12", says=(RESCHEDULE,))
    run = resume("train.steps=12", 'scheduler.on_resume="extend"')
    assert read_run(run).last_step() == 12


@pytest.mark.parametrize("kind", ["rank", "alpha"])
def test_the_way_around_another_rank_or_alpha(kind: str, place: Place) -> None:
    place()
    message = refusal(f"lora.{kind}=8", says=("trainscope lora resize",))
    (command,) = re.findall(r"`(trainscope lora resize .*?)`", message)
    done = trainscope(*shlex.split(command.replace("OUT", "mine.safetensors"))[1:])
    assert done.code == 0, done.err
    init = trainscope(
        "run", "cfg.toml", "--no-audit", *settings("lora.init_from=mine.safetensors", f"lora.{kind}=8", "train.steps=1")
    )
    assert init.code == 0, init.err


def test_the_way_around_a_change_of_a_lora(place: Place) -> None:
    place()
    message = refusal("train.batch_size=3", says=(NEW_RUN,))
    ((key, path),) = re.findall(r'with (\S+) = "(.*)"', message)
    init = trainscope("run", "cfg.toml", "--no-audit", *settings("train.batch_size=3", f'{key}="{path}"'))
    assert init.code == 0, init.err


def test_the_way_around_a_change_of_a_finetune(place: Place) -> None:
    place({"train.method": "finetune"})
    message = refusal("train.batch_size=3", says=("model.base = ",))
    ((key, path),) = re.findall(r'with (\S+) = "(.*)"', message)
    assert key == "model.base"
    init = trainscope(
        "run", "cfg.toml", "--no-audit", *settings("train.batch_size=3", "train.steps=1", f'{key}="{path}"')
    )
    assert init.code == 0, init.err


def test_the_micro_batches_of_a_step_cannot_change_within_it(place: Place, few: Path) -> None:
    place()
    config = resolved(few, QUICK, {"train.gradient_accumulation": 3})
    run = trained(config, Path("runs/other"), Signal(signal.SIGTERM, 2, 1)).run
    before = digest(run)
    with pytest.raises(ConfigError, match="in the middle of a step"):
        trained(resolved(few, QUICK, {"train.gradient_accumulation": 2}), run, resume="latest")
    assert digest(run) == before
    trained(config, run, resume="latest")
    assert_continued(run)


# ---- other data


@pytest.fixture
def own_data(few: Path, place: Place) -> Path:
    """A place whose pictures are its own, with a run that was stopped."""
    folder = place()
    data = Path(shutil.copytree(few, folder / "data"))
    text = (folder / "cfg.toml").read_text(encoding="utf-8")
    (folder / "cfg.toml").write_text(text.replace(str(few), str(data)), encoding="utf-8")
    return data


def test_the_same_pictures_elsewhere(own_data: Path) -> None:
    run = resume()
    found = {name: status for name, status in odd(run).items() if name[0] != "config"}
    assert not found
    assert {name[2] for name in odd(run)} == {"data.dir"}


OTHER_DATA = ("data: the images or captions", "differ from those at the save", NEW_RUN)


def test_a_picture_was_added(own_data: Path) -> None:
    Image.new("RGB", (64, 64), (1, 2, 3)).save(own_data / "zz.png")
    (own_data / "zz.txt").write_text("plain", encoding="utf-8")
    refusal(says=OTHER_DATA)


def test_a_caption_was_edited(own_data: Path) -> None:
    for caption in own_data.glob("*.txt"):
        caption.write_text(caption.read_text(encoding="utf-8") + ", on white", encoding="utf-8")
    refusal(says=OTHER_DATA)


def test_a_picture_was_renamed_to_the_end(own_data: Path) -> None:
    """The order of the samples is by name, and the place in the data means nothing in another order."""
    first = min(own_data.glob("*.png"))
    first.with_suffix(".txt").rename(own_data / "zz.txt")
    first.rename(own_data / "zz.png")
    refusal(says=OTHER_DATA)


def test_other_data_and_a_schedule_that_ends_are_told_together(own_data: Path) -> None:
    for caption in own_data.glob("*.txt"):
        caption.write_text("another", encoding="utf-8")
    refusal("train.steps=4", says=(*OTHER_DATA, "train.steps = 4"))


# ---- what to resume


def test_latest_without_a_run(place: Place) -> None:
    folder = place()
    shutil.rmtree(folder / "runs")
    refusal(says=("there is no run named run in ", "start it without --resume"))


def test_latest_of_another_name(place: Place) -> None:
    place()
    refusal('run.name="other"', says=("there is no run named other in ",))


def test_latest_is_the_newest_run_of_the_name(place: Place) -> None:
    folder = place()
    for name, created in (("newer", "2999-01-02T00:00:00+00:00"), ("older", "2999-01-01T00:00:00+00:00")):
        run = RunDir(Path(shutil.copytree(folder / "runs" / "it", folder / "runs" / name)))
        run.update(created=created)
    broken = folder / "runs" / "broken"
    broken.mkdir()
    (broken / "run.json").write_text("{", encoding="utf-8")
    assert resume() == folder / "runs" / "newer"


def test_latest_and_out_go_on_in_that_run(place: Place) -> None:
    folder = place()
    shutil.copytree(folder / "runs" / "it", folder / "mine")
    RunDir(folder / "runs" / "it").update(created="2999-01-02T00:00:00+00:00")
    assert resume(options=("--out", "mine")) == folder / "mine"


def test_a_run_that_ended_before_its_first_checkpoint(place: Place) -> None:
    class Fails(Callback):
        def after_step(self, session: Session) -> None:
            raise RuntimeError("a bug")

    folder = place()
    shutil.rmtree(folder / "runs")
    with pytest.raises(RuntimeError, match="a bug"):
        trained(resolved(Path(_value("data.dir")), QUICK), folder / "runs" / "it", Fails())
    refusal(says=("has no checkpoint: it ended before the first one was saved", "start anew without --resume"))


@pytest.mark.slow
def test_a_run_that_was_killed_before_its_first_checkpoint(place: Place, few: Path) -> None:
    folder = place()
    shutil.rmtree(folder / "runs")
    killed(few, folder / "runs" / "it", QUICK, step=2)
    # Half a checkpoint is none.
    (folder / "runs" / "it" / "checkpoints" / ".step-00000002.1.tmp" / "state").mkdir(parents=True)
    refusal(says=("has no checkpoint: it ended before the first one was saved",))


def test_a_run_that_still_goes(place: Place) -> None:
    folder = place()
    with RunDir(folder / "runs" / "it").lock():
        refusal(says=("is in use by another process",))
    resume()


def test_a_run_that_is_complete(place: Place) -> None:
    place()
    run = resume()
    refusal(says=(f"train.steps = {STEPS}", f"already has {STEPS} steps", "raise it to go on"))
    resume(f"train.steps={STEPS + 1}")
    assert read_run(run).last_step() == STEPS + 1


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ("nowhere", ("no such checkpoint: ", "nowhere")),
        ("cfg.toml", ("is neither a run nor a checkpoint", "checkpoints lie in RUN/checkpoints/step-")),
        ("runs", ("is neither a run nor a checkpoint",)),
        ("runs/it/checkpoints", ("is neither a run nor a checkpoint",)),
        (WEIGHTS, ("is neither a run nor a checkpoint",)),
        ("runs/it/checkpoints/step-00000099", ("no such checkpoint: ",)),
    ],
)
def test_what_cannot_be_resumed(wanted: str, says: tuple[str, ...], place: Place) -> None:
    place()
    refusal(wanted=wanted, says=says)


@pytest.mark.parametrize("wanted", ["runs/it", f"runs/it/checkpoints/step-{STOP:08d}"])
def test_a_path_is_relative_to_where_it_is_typed(wanted: str, place: Place) -> None:
    folder = place()
    assert resume(wanted=wanted) == folder / "runs" / "it"
    assert_continued(folder / "runs" / "it")


def test_resume_in_the_configuration_begins_where_there_is_no_run(place: Place) -> None:
    folder = place()
    shutil.rmtree(folder / "runs")
    command = ("run", "cfg.toml", "--no-audit", *settings('checkpoint.resume="latest"'))
    first = trainscope(*command)
    assert first.code == 0, first.err
    assert len(RunDir(Path(first.last_line)).read()["segments"]) == 1
    longer = trainscope(*command, *settings(f"train.steps={STEPS + 2}"))
    assert longer.code == 0, longer.err
    assert longer.last_line == first.last_line
    assert [segment["start_step"] for segment in RunDir(Path(first.last_line)).read()["segments"]] == [0, STEPS]
    refused(*command, says=("raise it to go on",), folder=folder)


def test_resume_in_the_configuration_and_an_out_that_is_new(place: Place) -> None:
    """A script that always passes --out begins there at first, and goes on there the next time."""
    place()
    shutil.rmtree("runs")
    command = ("run", "cfg.toml", "--no-audit", "--out", "mine", *settings('checkpoint.resume="latest"'))
    first = trainscope(*command)
    assert first.code == 0, first.err
    longer = trainscope(*command, *settings(f"train.steps={STEPS + 2}"))
    assert longer.code == 0, longer.err
    assert [segment["start_step"] for segment in RunDir(Path("mine")).read()["segments"]] == [0, STEPS]


def test_an_option_stands_before_the_configuration(place: Place) -> None:
    folder = place()
    run = resume('checkpoint.resume="nowhere"')
    assert run == folder / "runs" / "it"
    # checkpoint.resume is no change of the training.
    assert not odd(run)


# ---- a new run from another one's checkpoint


@pytest.mark.parametrize("how", ["name", "out"])
def test_another_run_goes_on(how: str, place: Place, few: Path) -> None:
    looked_at = {"eval.every_steps": 2, "eval.samples": 4, "sample.every_steps": STOP, "sample.steps": 2}
    folder = place(looked_at)
    parent = folder / "runs" / "it"
    before, info = digest(parent), RunDir(parent).read()
    if how == "name":
        new = resume('run.name="other"', wanted="runs/it")
        assert new.name.startswith("other-")
    else:
        new = resume(wanted="runs/it", options=("--out", "elsewhere"))
        assert new == folder / "elsewhere"
    assert digest(parent) == before
    made = RunDir(new).read()
    assert made["parent"] == info["id"] != made["id"]
    (segment,) = made["segments"]
    assert (segment["number"], segment["start_step"], segment["end_step"]) == (0, STOP, STEPS)
    assert Path(segment["resumed_from"]) == newest(parent)
    assert read_fingerprint(new / "segments" / "0") == read_fingerprint(newest(parent))
    found = {name: status for name, status in statuses(new, 0).items() if status != "match"}
    assert found.keys() == ({("config", None, "run.name")} if how == "name" else set())
    assert [row["step"] for row in rows(new, "steps")] == list(range(STOP + 1, STEPS + 1))
    assert len(rows(new, "data")) == 10
    # Nobody has looked at it in this run before.
    assert sorted(row["step"] for row in rows(new, "evals")) == [4, 6, 8]
    assert sorted({row["step"] for row in rows(new, "samples")}) == [4, 8]
    # It is the same training as the one that goes on in place.
    assert trained_weights(newest(new)) == trained_weights(newest(resume()))


def test_a_checkpoint_without_its_run(place: Place) -> None:
    """Copied from another machine: a new run whose parent is known by its id."""
    folder = place()
    parent = RunDir(folder / "runs" / "it").read()["id"]
    shutil.move(newest(folder / "runs" / "it"), folder / "carried")
    shutil.rmtree(folder / "runs")
    new = resume(wanted="carried")
    assert RunDir(new).read()["parent"] == parent
    assert set(statuses(new, 0).values()) == {"match"}


def test_a_new_run_is_resumed_in_its_turn(place: Place) -> None:
    folder = place()
    stopped = trained(
        resolved(Path(_value("data.dir")), QUICK), folder / "second", resume=str(folder / "runs" / "it"), stop_at=6
    )
    again = resume(wanted=stopped.run)
    assert again == stopped.run
    assert_continued(again)
    assert trained_weights(newest(again)) == trained_weights(newest(resume()))


# ---- weights only

WEIGHTS_ONLY: Values = {"checkpoint.save_state": False}


@pytest.mark.parametrize("method", ["lora", "finetune"])
def test_weights_only_go_on_with_a_fresh_optimizer(method: str, place: Place, few: Path) -> None:
    made = {**WEIGHTS_ONLY, "train.method": method, "ema.enabled": True}
    place(made)
    run, began = Path("runs/it"), {}
    assert not (newest(run) / "state" / "trained.safetensors").exists()

    class Look(Callback):
        def before_backward(self, session: Session) -> None:
            if not began:
                began.update({name: bits(param) for name, param in session.params.items()})
                assert not session.optimizer.state
                assert (session.step, session.micro_step) == (STOP, STOP)

    saved = newest(run)
    straight = trained(resolved(few, QUICK, made), Path("straight"), stop_at=STOP)
    resumed = trained(resolved(few, QUICK, made), run, Look(), resume="latest")
    assert began == {name: bits(param) for name, param in straight.session.params.items()}
    told = warnings(run, 1)
    assert len([message for message in told if "the optimizer's state (it begins afresh)" in message]) == 1
    assert len([message for message in told if "the random states" in message]) == 1
    assert len([message for message in told if "EMA begins again" in message]) == 1
    found = statuses(run)
    assert {status for name, status in found.items() if name[0] == "weights"} == {"match"}
    assert {status for name, status in found.items() if name[0] == "optimizer"} == {"missing"}
    assert {status for name, status in found.items() if name[0] == "ema" and name[2] == "shadow"} == {"changed"}
    # The place in the data and in the schedule is known all the same.
    assert found[("counter", None, "micro_step")] == found[("scheduler", None, "last_epoch")] == "match"
    assert {row["position"] for row in rows(run, "order")} == set(range(STEPS))
    assert resumed.finished.step == STEPS
    assert saved.exists()


def test_weights_only_in_a_low_format(place: Place) -> None:
    """They were rounded when they were saved for use, and that is told."""
    place({**WEIGHTS_ONLY, "precision.save": "fp16"})
    run = resume()
    assert {status for name, status in statuses(run).items() if name[0] == "weights"} == {"dtype"}


def test_weights_only_of_schedule_free_are_at_x(place: Place) -> None:
    place(WEIGHTS_ONLY, FREE)
    run = resume()
    found = statuses(run)
    assert found[("schedule-free", None, "mode at the weights' point")] == "changed"
    assert "changed" in {status for name, status in found.items() if name[0] == "weights"}


# ---- starting from a LoRA


def begun(*changes: str) -> dict[str, torch.Tensor]:
    """The trained weights that a new run begins with."""
    seen: dict[str, torch.Tensor] = {}

    class Look(Callback):
        def on_start(self, session: Session) -> None:
            seen.update({name: param.detach().clone() for name, param in session.params.items()})
            assert not session.optimizer.state
            assert (session.step, session.micro_step, session.scheduler.last_epoch) == (0, 0, 0)

    from trainscope.config.load import load_config

    trained(load_config(Path("cfg.toml"), changes), None, Look(), stop_at=1)
    return seen


@pytest.mark.parametrize("source", ["runs/it", f"runs/it/checkpoints/step-{STOP:08d}", WEIGHTS])
def test_a_lora_to_start_from(source: str, place: Place) -> None:
    place()
    found = begun(f"lora.init_from={source}", "run.seed=7", 'optimizer.type="lion"', "train.batch_size=1")
    saved = load_file(newest(Path("runs/it")) / "state" / "trained.safetensors")
    assert {name: bits(tensor) for name, tensor in found.items()} == {n: bits(t) for n, t in saved.items()}
    made = max(Path("runs").glob("run-*"))
    assert RunDir(made).read()["parent"] is None
    assert "resumed_from" not in RunDir(made).read()["segments"][0]


def test_a_lora_to_start_from_is_not_taken_for_new_at_a_resume(place: Place) -> None:
    """The key stays in the configuration, and the resumed weights are not overwritten by it."""
    folder = place()
    init = settings(f"lora.init_from={WEIGHTS}", 'run.name="next"')
    first = trainscope("run", "cfg.toml", "--no-audit", *init)
    assert first.code == 0, first.err
    left = trained_weights(newest(Path(first.last_line)))
    longer = trainscope("run", "cfg.toml", "--no-audit", "--resume", "latest", *init, *settings("train.steps=9"))
    assert longer.code == 0, longer.err
    assert longer.last_line == first.last_line
    assert not [name for name in odd(Path(first.last_line)) if name[0] == "weights"]
    assert trained_weights(newest(Path(first.last_line))) != left
    assert folder.exists()
    refused(
        "run",
        "cfg.toml",
        "--resume",
        "latest",
        *settings('run.name="next"', "train.steps=10"),
        says=("lora.init_from = not set: was ", "a training starts from weights only once"),
        folder=folder,
    )


def test_a_run_to_start_from_gives_its_newest_checkpoint(place: Place) -> None:
    place()
    run = resume()
    assert begun("lora.init_from=runs/it").keys() == trained_weights(newest(run)).keys()
    found = {name: bits(tensor) for name, tensor in begun("lora.init_from=runs/it").items()}
    assert found == trained_weights(newest(run))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (("lora.rank=8",), ("rank 4, and lora.rank asks for 8", "lora resize")),
        (("lora.alpha=1",), ("alpha 4, and lora.alpha asks for 1", "lora resize")),
        (('lora.targets=["to_q"]',), ("the file adapts it, and lora.targets does not",)),
        (('lora.targets=["to_q", "to_k", "to_v", "to_out.0", "proj_in"]',), ("proj_in: is not in the file",)),
        (('train.method="finetune"',), ("it starts a LoRA only",)),
        (("lora.init_from=nowhere.safetensors",), ("nowhere.safetensors",)),
        (("lora.init_from=cfg.toml",), ("cfg.toml",)),
        (("lora.init_from=runs",), ("runs",)),
        (("lora.init_from=damaged.safetensors",), ("damaged.safetensors",)),
        (("lora.init_from=truncated.safetensors",), ("truncated.safetensors",)),
        (("lora.init_from=pickled.safetensors",), ("pickled.safetensors",)),
        (("lora.init_from=empty.safetensors",), ("empty.safetensors",)),
        (("lora.init_from=none.safetensors",), ("none.safetensors",)),
        (("lora.init_from=bare",), ("bare has no checkpoint",)),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_lora_that_does_not_fit(changes: tuple[str, ...], says: tuple[str, ...], place: Place) -> None:
    folder = place()
    whole = Path(WEIGHTS).read_bytes()
    Path("damaged.safetensors").write_bytes(b"\xff" * 8 + whole[8:])
    Path("truncated.safetensors").write_bytes(whole[: len(whole) // 2])
    torch.save({"a": torch.zeros(1)}, "pickled.safetensors")
    Path("empty.safetensors").touch()
    save_file({}, "none.safetensors")
    shutil.copytree("runs/it", "bare")
    shutil.rmtree("bare/checkpoints")
    Path("bare/checkpoints").mkdir()
    refused("run", "cfg.toml", *settings(f"lora.init_from={WEIGHTS}", *changes), says=says, folder=folder)


# ---- an end to end that uses the shared comparison


def test_a_new_run_is_bit_for_bit_the_old_one(place: Place, few: Path) -> None:
    folder = place()
    straight = trained(resolved(few, QUICK), folder / "straight")
    new = trained(resolved(few, QUICK), folder / "new", resume=str(folder / "runs" / "it"))
    assert not differences(straight.bits(), new.bits())
    resumed = trained(resolved(few, QUICK), folder / "runs" / "it", resume="latest")
    assert_same_training(straight, resumed)
