from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainscope.trainer.models.emphasis import parse_emphasis, split_tags, weigh

WEBUI = {
    "normal text": [("normal text", 1.0)],
    "an (important) word": [("an ", 1.0), ("important", 1.1), (" word", 1.0)],
    "(unbalanced": [("unbalanced", 1.1)],
    r"\(literal\]": [("(literal]", 1.0)],
    "(unnecessary)(parens)": [("unnecessaryparens", 1.1)],
    "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).": [
        ("a ", 1.0), ("house", 1.573), (" ", 1.1), ("on", 1.0), (" a ", 1.1), ("hill", 0.55), (", sun, ", 1.1),
        ("sky", 1.4641), (".", 1.1),
    ],
}  # fmt: skip
"""The examples of stable-diffusion-webui's documentation of its parser."""


@pytest.mark.parametrize(("caption", "parts"), WEBUI.items())
def test_captions_are_read_as_the_interface_does(caption: str, parts: list[tuple[str, float]]) -> None:
    found = parse_emphasis(caption)
    assert [text for text, _ in found] == [text for text, _ in parts]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in parts])


@pytest.mark.parametrize(
    ("caption", "parts"),
    {
        "": [],
        "()": [],
        "[[a]]": [("a", 1 / 1.21)],
        "(a:2.)(b:.5)": [("a", 2.0), ("b", 0.5)],
        "(a : 1.5 )": [("a ", 1.5)],
        "(a:x)": [("a:x", 1.1)],
        "(a:1.2.3)": [("a:1.2.3", 1.1)],
        "a:1.5) b]": [("a:1.5) b]", 1.0)],
        "[a:1.5]": [("a:1.5", 1 / 1.1)],
        "(a (b:3):0.5)": [("a ", 0.5), ("b", 1.5)],
        r"\\(a\)b) \c": [("\\", 1.0), ("a)b", 1.1), (" c", 1.0)],
        "時間 (猫:2)": [("時間 ", 1.0), ("猫", 2.0)],
    }.items(),
)
def test_edges(caption: str, parts: list[tuple[str, float]]) -> None:
    found = parse_emphasis(caption)
    assert [text for text, _ in found] == [text for text, _ in parts]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in parts])


@given(st.text(alphabet="ab,:1.5()[]\\ ", max_size=25))
def test_any_text_is_read_and_its_letters_stay(caption: str) -> None:
    found = parse_emphasis(caption)
    assert all(text for text, _ in found)
    assert "".join(letter for text, _ in found for letter in text if letter in "ab,") == "".join(
        letter for letter in caption if letter in "ab,"
    )
    if not set(caption) & set("()[]\\"):
        assert found == ([(caption, 1.0)] if caption else [])


def test_tags_are_split_at_commas() -> None:
    assert split_tags(" a, b b ,, c,") == ["a", "b b", "c"]
    assert split_tags("") == []
    assert split_tags("a, (b, c:1.2), d") == ["a", "(b", "c:1.2)", "d"]
    assert split_tags("a, (b, [c, d]:1.2), e, x)", brackets=True) == ["a", "(b, [c, d]:1.2)", "e", "x)"]
    assert split_tags(r"a \(b, c\), d: e", brackets=True) == [r"a \(b", r"c\)", "d: e"]


def reference(hidden: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """`EmphasisOriginal`, in float64, one caption at a time."""
    rows = []
    for row, factors in zip(hidden.double(), weights.double(), strict=True):
        before = row.mean()
        weighed = row * factors[:, None]
        rows.append(weighed * (before / weighed.mean()))
    return torch.stack(rows)


def test_embeddings_are_multiplied_and_their_mean_restored() -> None:
    hidden = torch.randn(3, 77, 16, generator=torch.Generator().manual_seed(0)) + 0.1
    weights = torch.ones(3, 77)
    weights[0, 3:5], weights[2, 1] = 1.5, 0.2
    found = weigh(hidden, weights)
    assert torch.allclose(found.double(), reference(hidden, weights), rtol=1e-4, atol=1e-6)
    assert torch.equal(found[1], hidden[1])
    assert not torch.allclose(found[0], hidden[0])
    assert weigh(hidden.bfloat16(), weights).dtype == torch.bfloat16


def test_a_caption_without_emphasis_never_divides_by_a_mean_of_zero() -> None:
    assert torch.equal(weigh(torch.zeros(1, 77, 4), torch.ones(1, 77)), torch.zeros(1, 77, 4))


def test_the_gradient_reaches_the_embeddings() -> None:
    hidden = (torch.randn(2, 77, 4, generator=torch.Generator().manual_seed(0)) + 0.5).requires_grad_()
    weights = torch.ones(2, 77)
    weights[0, 2] = 3
    weigh(hidden, weights)[0, 2].sum().backward()
    assert hidden.grad is not None
    assert hidden.grad[0, 2].abs().sum() > 0
    assert torch.isfinite(hidden.grad).all()


def test_a_mean_of_zero_is_not_restored() -> None:
    """A normalisation without an offset leaves a mean of rounding errors, whose ratio is any number."""
    hidden = torch.randn(2, 77, 16, generator=torch.Generator().manual_seed(0))
    hidden = torch.nn.functional.layer_norm(hidden, (16,))
    weights = torch.ones(2, 77)
    weights[0, 3] = 1.2
    found = weigh(hidden, weights)
    expected = hidden.clone()
    expected[0, 3] *= 1.2
    assert torch.equal(found, expected)
