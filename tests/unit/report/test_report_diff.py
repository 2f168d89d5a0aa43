import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainscope.errors import ConfigError
from trainscope.report.diff import apply_patch, config_diff

CONFIG = """\
# mine
[precision]
weights = "bf16"   # fits the card

[optimizer]
type = "prodigy"
lr = 1.0
"""


def test_a_change_keeps_comments_and_touches_one_line():
    assert apply_patch(CONFIG, {"precision.weights": "fp32"}) == CONFIG.replace('"bf16"', '"fp32"')
    assert config_diff(CONFIG, {"precision.weights": "fp32"}).splitlines() == [
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


@pytest.mark.parametrize("text", ["", "  \n", "not = = toml", "precision = 3"])
def test_where_no_diff_can_be_made_the_keys_are_shown(text):
    assert config_diff(text, {"precision.weights": "fp32", "x": None}) == 'precision.weights = "fp32"\nx (removed)'


@pytest.mark.parametrize("key", ["", ".", "a..b", "precision", "precision.weights.x"])
def test_a_key_that_leads_nowhere_is_a_config_error(key):
    with pytest.raises(ConfigError):
        apply_patch(CONFIG, {key: 1})


def test_a_patch_that_changes_nothing_still_shows_the_key():
    assert config_diff(CONFIG, {"optimizer.lr": 1.0}) == "optimizer.lr = 1.0"


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
