import math

import pytest

from trainscope.report import wording


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        ("", "–"),
        (0, "0"),
        (0.0, "0"),
        (1.0, "1"),
        (1.1191, "1.12"),
        (1e-6, "1e-6"),
        (2.13e-9, "2.13e-9"),
        (0.00051, "0.00051"),
        (12345, "12,345"),
        (1500.0, "1500"),
        (123456.7, "123,457"),
        (1e20, "1e20"),
        (-0.25, "-0.25"),
        (True, "yes"),
        ("NaN", "NaN"),
        (math.nan, "NaN"),
        (-math.inf, "-∞"),
        ("Infinity", "∞"),
        ("a\nb", "a b"),
        ([1, "x"], '[1, "x"]'),
        (10**30, f"{10**30:,}"),
    ],
)
def test_brief(value, text):
    assert wording.brief(value) == text


@pytest.mark.parametrize("url", ["https://a.org/x?y=1#z", "http://a.org"])
def test_web_addresses_become_links(url):
    assert wording.web_address(url) == url


@pytest.mark.parametrize(
    "url",
    [
        "javascript:alert(1)",
        "JaVaScRiPt:alert(1)",
        " https://a.org",
        "https://",
        "https:///x",
        "//a.org",
        "data:text/html,x",
        "file:///etc/passwd",
        "java\nscript:x",
        "https://a.org/\u0000",
        "https://[",
        "mailto:a@b.c",
        "",
    ],
)
def test_other_addresses_do_not(url):
    assert wording.web_address(url) is None


def test_a_shortened_address_shows_the_real_host():
    assert wording.shortened("https://github.com@evil.org/login") == "evil.org/login"


def test_clean_takes_what_steers_a_terminal_or_turns_a_line_around():
    assert wording.clean("a\x1b[31mb\x9b0m\u202ec\u2066\rd\r\n\te") == "a\ufffd[31mb\ufffd0m\ufffdc\ufffd\ufffdd\n\te"


@pytest.mark.parametrize(
    ("first", "last", "text"), [(None, None, ""), (1, 150, "steps 1–150"), (7, 7, "step 7"), (7, None, "step 7")]
)
def test_steps(first, last, text):
    assert wording.steps(first, last) == text


def test_a_proof_is_told_in_numbers():
    proof = {"case": "c", "rule": "clear", "loss_before": 1.12, "loss_after": 0.19, "loss_healthy": 0.19}
    said = "held-out loss ended at 0.19 instead of 1.12 (healthy run: 0.19); the rule said clear"
    assert wording.proof_sentence(proof) == said
    assert wording.proof_sentence({**proof, "loss_after": 1.12}).startswith(
        "held-out loss ended at 1.12, as without it"
    )
    nothing = {"case": "c", "rule": "fired", "loss_before": None, "loss_after": None, "loss_healthy": None}
    assert wording.proof_sentence(nothing) == "the rule still fired"


def test_scores_that_are_no_numbers_do_no_harm():
    assert wording.percent("NaN") == "–"
    assert wording.share("Infinity") == 0.0
    assert wording.share(7) == 1.0


def test_sentences_begin_with_a_capital_where_the_word_is_one():
    assert wording.sentence("held-out loss fell") == "Held-out loss fell"
    for text in ("d grew", "lr was", "precision.weights = 1", "lora_alpha is 1", "SDXL", "99% of it", ""):
        assert wording.sentence(text) == text


def test_numbers_near_one_keep_what_separates_them_from_it():
    assert [wording.brief(value) for value in (0.9999, 0.99437, 0.99999, 0.98765)] == [
        "0.9999",
        "0.9944",
        "0.99999",
        "0.988",
    ]


def test_long_texts_are_clipped():
    assert wording.clipped("a\n b") == "a b"
    assert wording.clipped("x" * 100) == "x" * 59 + "…"
