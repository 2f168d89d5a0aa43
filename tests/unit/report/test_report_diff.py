import pytest

from trainscope.report.diff import as_started, config_diff

CONFIG = """\
[precision]
weights = "bf16"   # fits the card

[optimizer]
type = "prodigy"
lr = 1.0
"""


@pytest.mark.parametrize("text", ["", "  \n", "not = = toml", "precision = 3"])
def test_where_no_diff_can_be_made_the_keys_are_shown(text):
    assert config_diff(text, {"precision.weights": "fp32", "x": None}) == 'precision.weights = "fp32"\nx (removed)'


def test_a_patch_that_changes_nothing_still_shows_the_key():
    assert config_diff(CONFIG, {"optimizer.lr": 1.0}) == "optimizer.lr = 1.0"


def test_the_config_as_started_has_what_the_command_line_set():
    started = as_started(CONFIG, {"optimizer.lr": 0.5, "train.max_grad_norm": "inf", "run.name": "a\nb"})
    assert "lr = 0.5" in started
    assert "max_grad_norm = inf" in started
    assert 'name = "a\\nb"' in started
    assert as_started(CONFIG, {}) == CONFIG
    assert as_started("", {"optimizer.lr": 0.5}) == ""
    assert as_started("not = = toml", {"optimizer.lr": 0.5}) == "not = = toml"
