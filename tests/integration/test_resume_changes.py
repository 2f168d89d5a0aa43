"""What a resumed training may change takes effect as asked; what it may not is refused, and nothing is touched."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
from pathlib import Path

import pytest
from PIL import Image

from tests.integration.commands import bits, digest, settings, trainscope
from tests.integration.half_done import (
    FREE,
    QUICK,
    STOP,
    WEIGHTS,
    Place,
    groups,
    newest,
    refusal,
    resume,
    trained_weights,
)
from tests.integration.resuming import (
    Signal,
    Values,
    assert_continued,
    odd,
    resolved,
    rows,
    statuses,
    trained,
    warnings,
)
from trainscope.errors import ConfigError
from trainscope.runlog.reader import read_run
from trainscope.trainer.callbacks import Callback
from trainscope.trainer.checkpoints.folder import LORA_FILE
from trainscope.trainer.session import Session


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

COSINE: Values = {"scheduler.type": "cosine", "scheduler.warmup": 2.0}
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
        (COSINE, "scheduler.warmup=1", ("scheduler.warmup = 1.0: was 2.0: ", RESCHEDULE)),
        (
            COSINE,
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
    place(COSINE)
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
