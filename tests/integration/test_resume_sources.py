"""What a training can go on from: a run, another run's checkpoint, weights without state, a LoRA."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.integration.commands import bits, digest, refused, settings, trainscope
from tests.integration.half_done import (
    FREE,
    QUICK,
    STEPS,
    STOP,
    WEIGHTS,
    Place,
    data_folder,
    newest,
    refusal,
    resume,
    trained_weights,
)
from tests.integration.resuming import (
    Values,
    assert_continued,
    assert_same_training,
    differences,
    killed,
    odd,
    resolved,
    rows,
    statuses,
    trained,
    warnings,
)
from trainscope.runlog.fingerprint import read_fingerprint
from trainscope.runlog.reader import read_run
from trainscope.runlog.rundir import RunDir
from trainscope.trainer.callbacks import Callback
from trainscope.trainer.session import Session


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
        trained(resolved(data_folder(), QUICK), folder / "runs" / "it", Fails())
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
    stopped = trained(resolved(data_folder(), QUICK), folder / "second", resume=str(folder / "runs" / "it"), stop_at=6)
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
