"""What differs in configuration, environment and what the log shows."""

from __future__ import annotations

from typing import Any

from tests.unit.engine.compare.runs import run, settings
from trainscope.engine.compare.result import Difference, Earlier, Setting
from trainscope.engine.compare.settings import config_differences, environment_differences, observed_differences

EXEC = {"origin": "exec"}


def keys(rows: tuple[Difference, ...]) -> list[str]:
    return [row.key for row in rows]


def test_only_keys_that_differ_and_those_somebody_set_first() -> None:
    plan = {"plan.steps": Setting(10, origin="derived")}
    longer = {"plan.steps": Setting(20, origin="derived")}
    one = {**settings(optimizer__lr=1.0, train__steps=10, data__flip=False, run__name="a", run__dir="x"), **plan}
    two = {**settings(optimizer__lr=2, train__steps=20, data__flip=False, run__name="b", run__dir="y"), **longer}
    asked, implied = config_differences([run("a", config=one), run("b", config=two)])
    assert (keys(asked.differing), asked.equal) == (["optimizer.lr", "train.steps"], 1)
    assert keys(implied.differing) == ["plan.steps"]


def test_a_default_beside_a_value_that_was_set_is_a_difference_that_was_set() -> None:
    asked, implied = config_differences(
        [run("a", config={"ema.decay": Setting(0.999, origin="default")}), run("b", config=settings(ema__decay=0.9))]
    )
    assert (keys(asked.differing), implied.differing) == (["ema.decay"], ())


def test_what_changes_no_weight_comes_last() -> None:
    one = settings(sample__steps=1, audit__live=True, train__steps=1, eval__samples=1)
    two = settings(sample__steps=2, audit__live=False, train__steps=2, eval__samples=2)
    asked, _ = config_differences([run("a", config=one), run("b", config=two)])
    assert keys(asked.differing) == ["train.steps", "audit.live", "eval.samples", "sample.steps"]


def test_a_resume_with_another_value_is_a_difference_even_where_the_last_values_agree() -> None:
    changed = Setting(5e-4, origin="cli", earlier=(Earlier(1e-3, 60),))
    asked, _ = config_differences(
        [run("a", config=settings(optimizer__lr=5e-4)), run("b", config={"optimizer.lr": changed})]
    )
    assert asked.differing[0].settings[1].earlier == (Earlier(1e-3, 60),)
    saved = Setting(0, origin="cli", earlier=(Earlier(30, 60),))
    asked, _ = config_differences(
        [run("a", config=settings(checkpoint__every_steps=0)), run("b", config={"checkpoint.every_steps": saved})]
    )
    assert asked.differing == (), "how often it saved before changes nothing"


def test_a_key_of_another_optimizer_is_not_there_and_one_of_another_program_is_not_known() -> None:
    prodigy = settings(optimizer__type="prodigy", optimizer__d0=1e-6, optimizer__lr=1.0)
    adamw = settings(optimizer__type="adamw", optimizer__lr=1e-3, optimizer__text_encoder_lr=None)
    theirs = settings(optimizer__type="adamw", optimizer__lr=1e-2, optimizer__amsgrad=False)
    runs = [run("a", config=prodigy), run("b", config=adamw), run("c", config=theirs, info=EXEC)]
    asked, _ = config_differences(runs)
    known = {row.key: [setting.known for setting in row.settings] for row in asked.differing}
    assert known == {
        "optimizer.d0": ["yes", "no such key", "not recorded"],
        "optimizer.lr": ["yes", "yes", "yes"],
        "optimizer.type": ["yes", "yes", "yes"],
    }, "a key that is not set, and one that is not there, are the same; of amsgrad one run alone knows"
    assert asked.equal == 0


def test_a_run_without_a_configuration_hides_no_difference_of_the_others() -> None:
    runs = [
        run("a", config=settings(optimizer__lr=1.0)),
        run("b", config={}),
        run("c", config=settings(optimizer__lr=2.0)),
    ]
    asked, _ = config_differences(runs)
    assert [setting.known for setting in asked.differing[0].settings] == ["yes", "not recorded", "yes"]
    alone, _ = config_differences(runs[:2])
    assert (alone.differing, alone.equal) == ((), 0)


def test_versions_that_differ() -> None:
    one = {"torch": "2.12", "python": "3.11", "device.name": "H200"}
    two = {"torch": "2.13", "python": "3.11"}
    found = environment_differences([run("a", environment=one), run("b", environment=two), run("c", environment={})])
    assert keys(found.differing) == ["torch", "device.name"]
    assert [setting.value for setting in found.differing[0].settings] == ["2.12", "2.13", None]
    assert [setting.known for setting in found.differing[1].settings] == ["yes", "no such key", "not recorded"]
    assert found.equal == 1


def facts(**changes: Any) -> dict[str, Any]:
    return {
        "trained weights, unet": 100.0,
        "unet tensors": "aa",
        "pictures": 28.0,
        "pictures as a whole": "bb",
        **changes,
    }


def test_what_the_log_shows_beside_the_configuration() -> None:
    runs = [
        run("a", facts=facts()),
        run("b", facts=facts(**{"pictures as a whole": "cc", "weight decay, unet": "0.1"})),
    ]
    found = observed_differences(runs, told=())
    assert keys(found.differing) == ["pictures"]
    assert [setting.value for setting in found.differing[0].settings] == ["set A", "set B"]


def test_a_digest_is_not_told_beside_the_number_that_differs_as_well() -> None:
    runs = [run("a", facts=facts()), run("b", facts=facts(**{"pictures as a whole": "cc", "pictures": 30.0}))]
    assert keys(observed_differences(runs, told=()).differing) == ["pictures"]
    assert observed_differences(runs, told=()).differing[0].settings[0].value == 28.0


def test_what_the_configuration_tells_is_not_told_again() -> None:
    runs = [run(name, facts={"weight decay, unet": name, "flip": name}) for name in "ab"]
    assert keys(observed_differences(runs, told=()).differing) == ["weight decay, unet", "flip"]
    assert observed_differences(runs, told=["optimizer.weight_decay", "data.flip"]).differing == ()


def test_a_part_that_one_run_does_not_train() -> None:
    both = facts(**{"trained weights, text encoder": 50.0})
    found = observed_differences([run("a", facts=facts()), run("b", facts=both), run("c", facts={})], told=())
    (row,) = found.differing
    assert row.key == "trained weights, text encoder"
    assert [setting.known for setting in row.settings] == ["no such key", "yes", "not recorded"]
