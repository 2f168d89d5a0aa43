"""What explains the keys: `config show`'s rows and the cfg.toml of `init`, against the models that check a key."""

from __future__ import annotations

import pytest

from trainscope.config.describe import (
    NOT_SET,
    REQUIRED,
    describe,
    describe_optimizer,
    nearest,
    optimizer_meanings,
    sections,
)
from trainscope.config.load import all_keys, parse_config
from trainscope.config.optimizer import OPTIMIZERS
from trainscope.config.template import WIDTH, template

ROWS = {row.key: row for row in describe()}
TEMPLATE = template()
ACTIVE = {"model.base", "train.steps", "train.batch_size", "data.dir", "data.resolution"}
"""What the template sets."""


def test_every_key_is_explained() -> None:
    assert set(ROWS) == set(all_keys())
    assert [key for key, row in ROWS.items() if not row.meaning] == []
    assert all(optimizer_meanings().values())


def test_types_defaults_and_bounds_are_those_of_the_models() -> None:
    shown = {key: (row.type, row.default) for key, row in ROWS.items()}
    assert shown["train.method"] == ("lora | finetune", '"lora"')
    assert shown["train.epochs"] == ("integer > 0", NOT_SET)
    assert shown["model.base"] == ("string", REQUIRED)
    assert shown["lora.dropout"] == ("number ≥ 0, < 1", "0.0")
    assert shown["data.buckets.step"] == ("integer ≥ 8, ≤ 1024, multiple of 8", "64")
    assert shown["eval.every_steps"] == ("auto | integer ≥ 0", '"auto"')
    assert shown["sample.prompts"] == ("list of string", "[]")
    assert shown["run.seed"] == ("integer ≥ -1, < 2^63", "-1")


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_an_optimizer_is_described_alone_and_among_the_others(kind: str) -> None:
    alone = describe_optimizer(kind)
    assert [row.name for row in alone] == list(OPTIMIZERS[kind].model_fields)
    together = [row for row in describe() if row.section == "optimizer" and row.name != "type"]
    for row in alone[1:]:
        (same,) = [
            other
            for other in together
            if (other.key, other.type, other.default, other.meaning) == (row.key, row.type, row.default, row.meaning)
        ]
        assert kind in (same.optimizers or OPTIMIZERS)


def test_what_optimizers_have_alike_is_told_once() -> None:
    rows = [row for row in describe() if row.section == "optimizer"]
    assert len(rows) == len({(row.key, row.type, row.default, row.meaning) for row in rows})
    assert len(rows) < sum(len(model.model_fields) for model in OPTIMIZERS.values())


def test_a_misspelt_key_has_a_near_one() -> None:
    assert nearest("lora.rnk") == "did you mean lora.rank?"
    assert nearest("zzzzzz") is None


def test_the_template_is_a_configuration_and_names_every_key() -> None:
    parse_config(TEMPLATE)
    shown = {key for _, key, _ in _settings()}
    assert shown >= ACTIVE
    optimizers = {f"optimizer.{name}" for model in OPTIMIZERS.values() for name in model.model_fields}
    adamw = {f"optimizer.{name}" for name in OPTIMIZERS["adamw"].model_fields}
    assert shown == set(all_keys()) - (optimizers - adamw)


def test_the_template_is_read_in_an_editor() -> None:
    lines = TEMPLATE.splitlines()
    assert [line for line in lines if len(line) > WIDTH] == []
    assert WIDTH <= 100
    assert [section for section, _ in sections() if f"[{section}]" not in lines] == []
    assert "trainscope config show optimizer" in TEMPLATE


def _settings() -> list[tuple[str, str, int]]:
    """Section, dotted key and line number of every setting, commented out or not."""
    found, section = [], ""
    for number, line in enumerate(TEMPLATE.splitlines()):
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("# "):
            found.append((section, f"{section}.{line.removeprefix('#').partition(' = ')[0]}", number))
    return found


@pytest.mark.parametrize(("section", "key", "number"), _settings(), ids=[key for _, key, _ in _settings()])
def test_a_setting_of_the_template_can_be_switched_on(section: str, key: str, number: int) -> None:
    """Each by itself is accepted; it says the default, or gives an example where there is none."""
    lines = TEMPLATE.splitlines()
    lines[number] = lines[number].removeprefix("#")
    if key == "train.epochs":  # instead of steps
        lines.remove("steps = 300")
    if key == "lora.conv_alpha":  # of nothing without a rank
        lines[number] += "\nconv_rank = 8"
    resolved = parse_config("\n".join(lines))
    assert key == "audit.thresholds" or resolved.origins[key] == "file"
    if ROWS[key].default != NOT_SET and key not in ACTIVE:
        assert resolved.config == parse_config(TEMPLATE).config
