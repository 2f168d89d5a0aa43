import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainscope.errors import ConfigError
from trainscope.toml import apply_patch, patch_diff, toml_value

CONFIG = """\
# mine
[precision]
weights = "bf16"   # fits the card

[optimizer]
type = "prodigy"
lr = 1.0
"""


TEXT = """# my run
[train]
steps = 100   # enough?

[precision]
weights = "bf16"
"""


def test_a_value_changes_and_nothing_else() -> None:
    changed = apply_patch(TEXT, {"precision.weights": "fp32"})
    assert changed == TEXT.replace('"bf16"', '"fp32"')


def test_a_comment_beside_the_value_stays() -> None:
    assert "steps = 500   # enough?" in apply_patch(TEXT, {"train.steps": 500})


def test_tables_are_made_where_they_are_missing() -> None:
    changed = apply_patch(TEXT, {"ema.enabled": True, "data.buckets.step": 32, "top": 1, "train.lr": 1e-4})
    assert changed.startswith("# my run\n")
    assert tomllib.loads(changed) == {
        "top": 1,
        "train": {"steps": 100, "lr": 1e-4},
        "precision": {"weights": "bf16"},
        "ema": {"enabled": True},
        "data": {"buckets": {"step": 32}},
    }


@pytest.mark.parametrize(
    "text",
    [
        'precision = { weights = "bf16" }\n',
        'precision.weights = "bf16"\n',
        "[train]\nsteps = 1\n[precision.x]\na = 1\n",
        "[precision.x]\na = 1\n[train]\nsteps = 1\n[precision]\nweights = 1\n",
        "",
        "# only a comment",
    ],
)
def test_however_the_tables_are_written(text: str) -> None:
    changed = tomllib.loads(apply_patch(text, {"precision.weights": "fp32"}))
    assert changed["precision"]["weights"] == "fp32"
    before = tomllib.loads(text)
    assert changed.get("train") == before.get("train")
    assert changed["precision"].get("x") == before.get("precision", {}).get("x")


@pytest.mark.parametrize("value", [1, 1.5, True, "text", ["a", "b"], [0.9, 0.999], 1e-5])
def test_values_of_every_type(value: Any) -> None:
    assert tomllib.loads(apply_patch(TEXT, {"optimizer.x": value}))["optimizer"]["x"] == value


def test_a_change_keeps_comments_and_touches_one_line():
    assert apply_patch(CONFIG, {"precision.weights": "fp32"}) == CONFIG.replace('"bf16"', '"fp32"')
    assert patch_diff(CONFIG, {"precision.weights": "fp32"}).splitlines() == [
        "--- cfg.toml",
        "+++ cfg.toml",
        "@@ -1,5 +1,5 @@",
        " # mine",
        " [precision]",
        '-weights = "bf16"   # fits the card',
        '+weights = "fp32"   # fits the card',
        " ",
        " [optimizer]",
    ]


def test_new_tables_are_made_and_none_removes():
    patched = apply_patch(CONFIG, {"ema.decay": 0.99, "audit.thresholds.PRO001.min_growth": 2, "optimizer.lr": None})
    assert tomllib.loads(patched) == {
        "precision": {"weights": "bf16"},
        "optimizer": {"type": "prodigy"},
        "ema": {"decay": 0.99},
        "audit": {"thresholds": {"PRO001": {"min_growth": 2}}},
    }
    assert "\n\n[ema]\ndecay = 0.99\n" in patched


def test_small_numbers_are_written_as_people_write_them():
    assert "d0 = 1e-5\n" in apply_patch(CONFIG, {"optimizer.d0": 1e-5})


@pytest.mark.parametrize("key", ["", ".", "a..b", "precision", "precision.weights.x"])
def test_a_key_that_leads_nowhere_is_a_config_error(key):
    with pytest.raises(ConfigError):
        apply_patch(CONFIG, {key: 1})


words = st.from_regex(r"[a-z][a-z0-9_]{0,6}", fullmatch=True)
values = st.one_of(
    st.booleans(),
    st.integers(-(2**53), 2**53),
    st.floats(allow_nan=False),
    st.text(st.characters(codec="utf-8"), max_size=12),
    st.lists(st.integers(0, 9), max_size=3),
)


@given(st.dictionaries(st.tuples(words, words), values, max_size=4))
def test_a_patched_text_reads_back(patch):
    patched = tomllib.loads(apply_patch(CONFIG, {".".join(key): value for key, value in patch.items()}))
    wanted = tomllib.loads(CONFIG)
    for (table, key), value in patch.items():
        wanted.setdefault(table, {})[key] = value
    assert patched == wanted


def test_a_diff_of_nothing_is_empty():
    assert patch_diff(TEXT, {"precision.weights": "bf16"}) == ""
    assert patch_diff("a = 1", {"a": 2}).endswith("-a = 1\n+a = 2")


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), 1e-12, 0.1, [], ["a"], {"b": 1}])
def test_values_read_back(value):
    assert tomllib.loads(f"x = {toml_value(value)}")["x"] == value
