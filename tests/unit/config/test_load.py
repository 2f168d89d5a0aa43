"""Reading cfg.toml: every error at once, with the key, what was found and what is allowed."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from trainscope.config.load import load_config, parse_config, parse_override
from trainscope.config.model import RunConfig
from trainscope.errors import ConfigError

GOOD = '[model]\nbase = "tiny:sd15"\n[train]\nsteps = 10\n[data]\ndir = "images"\n'


def problems(text: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, overrides=overrides)
    return caught.value.problems


def test_origins() -> None:
    resolved = parse_config(GOOD, overrides=["optimizer.type=prodigy", "run.seed=7"])
    rows = {key: (value, origin) for key, value, origin in resolved.derive({"run.device": "cpu"}).rows()}
    assert rows["train.steps"] == (10, "file")
    assert rows["optimizer.type"] == ("prodigy", "cli")
    assert rows["run.seed"] == (7, "cli")
    assert rows["ema.decay"] == (0.999, "default")
    assert rows["run.device"] == ("cpu", "derived")


def test_all_errors_at_once() -> None:
    text = """
        [model]
        base = "tiny:sd15"
        [train]
        steps = "10"
        bach_size = 3
        [optimizer]
        lr = -1
        d_coef = 2.0
        [data]
        resolution = 30
        [emma]
        enabled = true
        """
    found = "\n".join(problems(text))
    assert "train.steps" in found
    assert "train.bach_size: unknown key; did you mean train.batch_size?" in found
    assert "optimizer.lr = -1" in found
    assert "optimizer.d_coef: belongs to optimizer.type = prodigy, and this run's is adamw" in found
    assert "data.dir: is required" in found
    assert "data.resolution = 30" in found
    assert "emma: unknown key; did you mean ema?" in found


def test_a_key_in_the_wrong_section_is_told_where_it_belongs() -> None:
    assert problems(GOOD, "train.lr=1e-4") == ["train.lr: unknown key; did you mean optimizer.lr?"]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["train.epochs=2"], "found both"),
        (["scheduler.warmup=5"], "has no warmup"),
        (["scheduler.type=constant-with-warmup"], "needs a warmup"),
        (["precision.weights=bf16", "precision.compute=fp32"], "computed in their own format"),
        (["precision.weights=bf16", "precision.compute=fp16"], "one low-precision format"),
        (["precision.stochastic_rounding=true"], "rounds bf16 weights only"),
        (["noise.min_timestep=500", "noise.max_timestep=500"], "the first has to be below the second"),
        (["noise.min_snr_gamma=5", "noise.debiased=true"], "choose one weighting"),
        (["model.zero_terminal_snr=true", "model.prediction_type=epsilon"], 'it needs "v_prediction"'),
        (["optimizer.type=prodigi"], "did you mean prodigy?"),
        (["train.steps=true"], "train.steps = true"),
        (["eval.every_steps=often"], "should be 'auto'; or"),
    ],
)
def test_impossible_values(overrides: list[str], expected: str) -> None:
    assert any(expected in problem for problem in problems(GOOD, *overrides))


def test_switching_a_section_off_needs_no_other_change() -> None:
    """`fix` and `--set` toggle sections: what is then without effect is no error."""
    parse_config(GOOD + "[ema]\nenabled = false\ndecay = 0.9\n[lora]\nrank = 4\n", overrides=["train.method=finetune"])


def test_broken_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such configuration"):
        load_config(tmp_path / "missing.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("[model\n")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_config(broken)
    broken.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(broken)
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(tmp_path)


def test_overrides_are_toml_or_words() -> None:
    assert parse_override("a.b=1e-3") == ("a.b", 0.001)
    assert parse_override("a.b = [1, 2]") == ("a.b", [1, 2])
    assert parse_override("a.b=prodigy") == ("a.b", "prodigy")
    assert parse_override("a.b=dpm++ 2m") == ("a.b", "dpm++ 2m")
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        parse_override("a.b")


def test_the_schema_is_valid_json_schema_of_every_section() -> None:
    schema = RunConfig.model_json_schema()
    assert set(schema["properties"]) == set(RunConfig.model_fields)
    assert tomllib.loads(GOOD)
