from __future__ import annotations

import functools
from typing import Any

import pytest

from tests.unit.engine.gate.profiles import profile
from trainscope.engine.gate.setup import differences, setup_facts
from trainscope.engine.tables import config_values, from_rows

PARAMS = [
    {"param": "unet.a", "name": "a", "component": "unet", "shape": "[2]", "numel": 2, "dtype": "float32",
     "in_optimizer": True},
    {"param": "text_encoder.b", "name": "b", "component": "text_encoder", "shape": "[3]", "numel": 3,
     "dtype": "float32", "in_optimizer": True},
    {"param": "text_encoder_2.b", "name": "b", "component": "text_encoder_2", "shape": "[4]", "numel": 4,
     "dtype": "float32", "in_optimizer": True},
]  # fmt: skip
DATA = [
    {"sample": number, "digest": f"d{number}", "tokens": 5, "truncated": 0, "repeats": 1, "bucket": "64×64",
     "split": "train"}
    for number in range(4)
]  # fmt: skip
TABLES: dict[str, Any] = {
    "params": PARAMS,
    "data": DATA,
    "groups": [
        {"step": step, "group": 0, "name": "unet", "weight_decay": 0.01, "betas": "[0.9, 0.999]", "eps": 1e-8}
        for step in (1, 2)
    ],
    "steps": [{"step": step, "samples": 4, "grad_norm": 2.0, "clip_coef": 0.5} for step in (1, 2, 3)],
    "evals": [{"step": 0, "weights": "raw", "split": "validation", "draws": 16, "loss": 1.0}],
    "config": {"ema.enabled": True, "ema.decay": 0.99, "optimizer.type": "adamw", "data.flip": False},
}


def facts(**tables: Any) -> dict[str, Any]:
    source = from_rows({**TABLES, **tables})
    return setup_facts(source, config_values(source))


@functools.cache
def usual() -> dict[str, Any]:
    return facts()


def told(**tables: Any) -> list[str]:
    """What differs from a run with `TABLES` in one with others."""
    return differences(profile(facts=facts(**tables)), profile(facts=usual()))


def test_facts_are_read_off_the_log() -> None:
    found = facts()
    assert found["trained weights, text encoder"] == 7
    assert found["trained weights, unet"] == 2
    assert found["gradient clipped to"] == 1.0
    assert found["samples a step"] == 4
    assert found["average of the weights"] == "decay 0.99"
    assert found["held-out loss before training, 16 draws of validation"] == 1.0


def test_equal_runs_do_not_differ_and_an_empty_log_knows_nothing() -> None:
    assert told() == []
    empty = from_rows({})
    assert setup_facts(empty, {}) == {}
    assert differences(profile(facts={}), profile(facts=facts())) == []


def changed(rows: list[dict[str, Any]], **values: Any) -> list[dict[str, Any]]:
    return [{**row, **values} for row in rows]


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"params": PARAMS[:1]}, ["trained weights, text encoder: 7 → none"]),
        ({"params": changed(PARAMS, in_optimizer=False)[:1] + PARAMS[1:]}, ["trained weights, unet: 2 → none"]),
        ({"params": changed(PARAMS[:1], name="c") + PARAMS[1:]}, ["the trained tensors of the unet are others"]),
        ({"params": changed(PARAMS[:1], dtype="bfloat16") + PARAMS[1:]}, ["their format, unet: float32 → bfloat16"]),
        ({"groups": changed(TABLES["groups"], weight_decay=0.1)}, ["weight decay, unet: 0.01 → 0.1"]),
        ({"groups": changed(TABLES["groups"], betas="[0.9, 0.99]")}, ["betas, unet: [0.9, 0.999] → [0.9, 0.99]"]),
        ({"steps": changed(TABLES["steps"], clip_coef=0.25)}, ["gradient clipped to: 1 → 0.5"]),
        ({"steps": changed(TABLES["steps"], clip_coef=None)}, ["gradient clipped to: 1 → not clipped"]),
        ({"steps": changed(TABLES["steps"], clip_coef=1.0, grad_norm=0.9)}, []),
        ({"steps": changed(TABLES["steps"], samples=8)}, ["samples a step: 4 → 8"]),
        ({"data": DATA[:3]}, ["pictures: 4 → 3", "pictures in an epoch: 4 → 3"]),
        ({"data": changed(DATA, tokens=0)}, ["captions are others"]),
        ({"data": changed(DATA, bucket="32×32")}, ["picture sizes are others"]),
        ({"data": DATA[::-1]}, []),
        ({"data": changed(DATA, path="elsewhere.png")}, []),
        ({"evals": changed(TABLES["evals"], loss=1.02)},
         ["held-out loss before training, 16 draws of validation: 1 → 1.02"]),
        ({"evals": changed(TABLES["evals"], loss=1.002)}, []),
        ({"evals": changed(TABLES["evals"], loss=2.0, draws=4)}, []),
        ({"config": {**TABLES["config"], "ema.enabled": False}}, ["average of the weights: decay 0.99 → none"]),
        ({"config": {**TABLES["config"], "data.flip": True}}, ["flip: false → true"]),
        ({"config": {**TABLES["config"], "data.dir": "elsewhere"}}, []),
    ],
)  # fmt: skip
def test_what_differs_is_told_in_words(tables: dict[str, Any], said: list[str]) -> None:
    assert told(**tables) == said
