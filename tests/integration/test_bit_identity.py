"""Looking changes nothing: weights, optimizer state, averages and random states are the same bits, probes on or off."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.choices import is_possible, pairs, pairwise
from tests.integration.commands import bits, config_text, in_a_process, settings
from trainscope.config import optimizer as registry
from trainscope.config.optimizers.shared import Estimated
from trainscope.proof.runs import RunSpec
from trainscope.runlog.reader import read_run
from trainscope.trainer.callbacks import Callback
from trainscope.trainer.session import Session
from trainscope.trainer.train import train

STEPS = 6

EIGHT_BIT = {"optimizer.min_8bit_size": 256}  # below its default all tensors of a tiny model stay in 32 bits
ESTIMATING = {"optimizer.d0": 1e-4}
NEEDED: dict[str, dict[str, Any]] = {
    "adamw": {"optimizer.lr": 1e-3},
    **{kind: EIGHT_BIT for kind in registry.OPTIMIZERS if kind.endswith("8bit")},
    **{kind: ESTIMATING for kind, model in registry.OPTIMIZERS.items() if issubclass(model, Estimated)},
}
"""What an optimizer needs to move within a few steps, where its defaults do not."""
OPTIMIZERS = {kind: {"optimizer.type": kind, **NEEDED.get(kind, {})} for kind in registry.OPTIMIZERS}
FORMATS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"precision.weights": "bf16"},
    "fp16": {"precision.weights": "fp16"},
    "bf16-stochastic": {"precision.weights": "bf16", "precision.stochastic_rounding": True},
}
ACCUMULATIONS = {"1": {}, "2": {"train.gradient_accumulation": 2}}
AVERAGES = {
    "no-ema": {},
    "ema-fp32": {"ema.enabled": True},
    "ema-bf16": {"ema.enabled": True, "ema.dtype": "bf16", "ema.warmup": False},
}
# Dropout draws from the global generator: a probe that drew from it too would change the bits.
METHODS: dict[str, dict[str, Any]] = {
    "finetune": {"train.method": "finetune"},
    "lora": {"train.method": "lora", "lora.rank": 4, "lora.alpha": 4.0, "lora.dropout": 0.1},
}
AXES = (OPTIMIZERS, FORMATS, ACCUMULATIONS, AVERAGES, METHODS)


def changes_of(row: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for axis, choice in zip(AXES, row, strict=True) for key, value in axis[choice].items()}


def possible(row: tuple[str, ...]) -> bool:
    return is_possible(changes_of(row))


ROWS = pairwise(AXES, possible)


def quick_rows() -> list[tuple[str, ...]]:
    """Those of them that have every optimizer once, and every pair of the other choices. All of them take minutes."""
    wanted = {row: {row[0], *pairs(row[1:])} for row in ROWS}
    missing = set().union(*wanted.values())
    chosen: list[tuple[str, ...]] = []
    while missing:
        chosen.append(max(ROWS, key=lambda row: len(missing & wanted[row])))
        missing -= wanted[chosen[-1]]
    return chosen


QUICK = quick_rows()
CASES = [pytest.param(row, id="-".join(row), marks=() if row in QUICK else pytest.mark.slow) for row in ROWS]


def test_every_pair_of_choices_is_tested() -> None:
    wanted = {pair for row in itertools.product(*AXES) if possible(row) for pair in pairs(row)}
    assert {pair for row in ROWS for pair in pairs(row)} == wanted
    assert {choice for row in ROWS for choice in row} == {choice for axis in AXES for choice in axis}
    most, second = sorted((len(axis) for axis in AXES), reverse=True)[:2]
    assert len(ROWS) <= most * second + 4
    assert {row[0] for row in QUICK} == OPTIMIZERS.keys()
    assert {pair for row in QUICK for pair in pairs(row[1:])} == {pair for row in ROWS for pair in pairs(row[1:])}
    assert len(QUICK) < len(OPTIMIZERS) + 6


class Capture(Callback):
    """Keeps hold of the session."""

    session: Session

    def on_start(self, session: Session) -> None:
        self.session = session


def finished(folder: Path, **changes: Any) -> Session:
    """A training of a few steps, over."""
    values: dict[str, Any] = {
        "train.steps": STEPS,
        "train.batch_size": 2,
        "data.resolution": 32,
        "eval.every_steps": 3,
        "eval.samples": 4,
        "probes.every": 1,
        **{key.replace("__", "."): value for key, value in changes.items()},
    }
    capture = Capture()
    train(RunSpec(values).resolved(), out=folder, callbacks=[capture])
    return capture.session


def everything(session: Session) -> dict[str, bytes]:
    """All that the next step would depend on, bit by bit."""
    found = {f"weight {name}": bits(param) for name, param in session.params.items()}
    state = session.optimizer.state_dict()
    found |= {f"optimizer {key}": value for key, value in _flat(state)}
    found |= {f"scheduler {key}": value for key, value in _flat(session.scheduler.state_dict())}
    found |= {f"scaler {key}": value for key, value in _flat(session.scaler.state_dict())}
    if session.ema is not None:
        found |= {f"ema {number}": bits(shadow) for number, shadow in enumerate(session.ema.shadow_params)}
        found["ema step"] = repr((session.ema.optimization_step, session.ema.cur_decay_value)).encode()
    if session.rounding is not None:
        found["rounding generator"] = bits(session.rounding.generator.get_state())
    return found


def random_states() -> dict[str, bytes]:
    numbers = np.random.get_state(legacy=True)
    return {
        "torch": bits(torch.get_rng_state()),
        "python": repr(random.getstate()).encode(),
        "numpy": repr((numbers[0], numbers[1].tolist(), *numbers[2:])).encode(),  # type: ignore[union-attr]
    }


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, bytes]]:
    if isinstance(value, torch.Tensor):
        yield path, bits(value)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _flat(item, f"{path}/{key}")
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _flat(item, f"{path}/{number}")
    else:
        yield path, repr(value).encode()


def both(folder: Path, looking: dict[str, Any], blind: dict[str, Any]) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """What a training leaves, with two ways to look at it. The random states begin alike."""
    results = []
    for name, changes in (("looking", looking), ("blind", blind)):
        random.seed(0)
        np.random.seed(0)
        left = everything(finished(folder / name, **changes))
        results.append({**left, **random_states()})
    return results[0], results[1]


def assert_same(one: dict[str, bytes], other: dict[str, bytes]) -> None:
    different = [key for key in one.keys() | other.keys() if one.get(key) != other.get(key)]
    assert not different, f"{len(different)} of {len(one)} differ: {sorted(different)[:5]}"


@pytest.mark.parametrize("row", CASES)
def test_probes_change_no_bit(row: tuple[str, ...], tmp_path: Path) -> None:
    changes = changes_of(row)
    looking, blind = both(tmp_path, changes, {**changes, "probes.tables": []})
    assert_same(looking, blind)
    # And they did look, at a training that moved.
    log = read_run(tmp_path / "looking").datasets
    probed = log["tensors"].to_table(columns=["step", "nonzero_count"])
    assert set(probed["step"].to_pylist()) == set(range(1, STEPS + 1))
    assert max(probed["nonzero_count"].to_pylist()) > 0
    assert log["ema"].count_rows() == (0 if "no-ema" in row else probed.num_rows)
    assert (log["adapters"].count_rows() > 0) == ("lora" in row)
    assert read_run(tmp_path / "blind").datasets["tensors"].count_rows() == 0


def test_evaluations_and_samples_change_no_bit(tmp_path: Path) -> None:
    changes = {**METHODS["lora"], **AVERAGES["ema-fp32"], "optimizer.lr": 1e-3}
    looking = {**changes, "sample.every_steps": 3, "sample.steps": 2, "eval.every_steps": 1}
    blind = {**changes, "sample.every_steps": 0, "eval.every_steps": 0, "probes.tables": []}
    assert_same(*both(tmp_path, looking, blind))
    assert len(list((tmp_path / "looking" / "samples").glob("*.png"))) == 3 * 2 * 2


def test_saving_changes_no_bit(tmp_path: Path) -> None:
    changes = {**METHODS["finetune"], **FORMATS["bf16-stochastic"], **AVERAGES["ema-bf16"]}
    often = {**changes, "checkpoint.every_steps": 2, "checkpoint.save_state": True, "checkpoint.keep": 1}
    assert_same(*both(tmp_path, often, changes))


def test_a_masked_model_is_watched_without_a_trace(tmp_path: Path) -> None:
    changes = {**METHODS["lora"], "model.base": "tiny:sd15-inpainting", "train.batch_size": 1}
    assert_same(*both(tmp_path, changes, {**changes, "probes.tables": [], "eval.every_steps": 0}))


def test_the_same_configuration_gives_the_same_bits(tmp_path: Path) -> None:
    changes = {**METHODS["lora"], **FORMATS["bf16-stochastic"], **AVERAGES["ema-fp32"]}
    assert_same(*both(tmp_path, changes, changes))


def test_another_seed_gives_others(tmp_path: Path) -> None:
    one, other = both(tmp_path, dict(METHODS["lora"]), {**METHODS["lora"], "run.seed": 2})
    weights = [key for key in one if key.startswith("weight ")]
    assert all(one[key] != other[key] for key in weights)


def test_a_drawn_seed_is_recorded_and_repeats_the_run(tmp_path: Path) -> None:
    drawn = finished(tmp_path / "drawn", **METHODS["lora"], run__seed=-1)
    rows = {row["key"]: row for row in read_run(tmp_path / "drawn").config_rows()}
    assert (rows["run.seed"]["value"], rows["run.seed"]["origin"]) == (drawn.seed, "derived")
    again = finished(tmp_path / "again", **METHODS["lora"], run__seed=drawn.seed)
    assert_same(everything(drawn), everything(again))


@pytest.mark.slow
def test_another_process_gives_the_same_bits(tmp_path: Path) -> None:
    """Nothing depends on the order of a set, which differs from process to process."""
    from safetensors.torch import load_file

    (tmp_path / "cfg.toml").write_text(config_text(), encoding="utf-8")
    changes = settings("run.seed=1", "run.device=cpu", "ema.enabled=true", "sample.steps=2", "optimizer.lr=1e-3")
    left: list[dict[str, bytes]] = []
    for seed in ("1", "2"):
        command = ("run", "cfg.toml", "--out", seed, "--no-audit", *changes)
        result = in_a_process(*command, cwd=tmp_path, PYTHONHASHSEED=seed)
        assert result.code == 0, result.err
        run = tmp_path / seed
        found = {path.name: path.read_bytes() for path in run.glob("samples/*.png")}
        for file in run.glob("checkpoints/*/*/*.safetensors"):  # their headers have the keys in any order
            found |= {f"{file.parent.name}/{name}": bits(tensor) for name, tensor in load_file(file).items()}
        left.append(found)
    assert_same(*left)
    assert len(left[0]) > 20
