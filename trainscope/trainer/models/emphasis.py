r"""Emphasis in captions: (word:1.2), (word) = 1.1, [word] = 1/1.1, nested; \( \) \[ \] \\ are the signs themselves.

The grammar and the arithmetic are those of AUTOMATIC1111's stable-diffusion-webui (modules/prompt_parser.py,
`parse_prompt_attention`; modules/sd_emphasis.py, `EmphasisOriginal`), which users know from their interface. BREAK,
AND and scheduled prompts are not read. Knows nothing of tokenizers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby

import torch
from torch import Tensor

ROUND = 1.1
SQUARE = 1 / 1.1
ROUNDING = 1e-5
"""Of the embeddings' root mean square: what float32 leaves of a mean of 0, and more."""

_PIECE = re.compile(
    r"""
    \\(?P<escaped>[()\[\]\\])               # a bracket or a backslash that is meant as itself
    | (?P<open>[(\[])
    | :\s*(?P<weight>[+-]?(?:\d+\.?\d*|\.\d+))\s*\)
    | (?P<close>[)\]])
    | (?P<text>[^\\()\[\]:]+|[\\:])
    """,
    re.VERBOSE,
)


def parse_emphasis(caption: str) -> list[tuple[str, float]]:
    """Split a caption into texts with their weights; neighbours of one weight are joined, none is empty.

    A bracket that is never closed reaches to the end; one that was never opened, and a weight outside of round
    brackets, are text; a backslash before anything else is dropped.
    """
    parts: list[tuple[str, float]] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def multiply(start: int, weight: float) -> None:
        parts[start:] = [(text, old * weight) for text, old in parts[start:]]

    for piece in _PIECE.finditer(caption):
        if bracket := piece["open"]:
            opened[bracket].append(len(parts))
        elif piece["weight"] and opened["("]:
            multiply(opened["("].pop(), float(piece["weight"]))
        elif piece["close"] == ")" and opened["("]:
            multiply(opened["("].pop(), ROUND)
        elif piece["close"] == "]" and opened["["]:
            multiply(opened["["].pop(), SQUARE)
        else:
            parts.append((piece["escaped"] or piece[0].lstrip("\\"), 1.0))
    for start in opened["("]:
        multiply(start, ROUND)
    for start in opened["["]:
        multiply(start, SQUARE)
    runs = groupby((part for part in parts if part[0]), key=lambda part: part[1])
    return [("".join(text for text, _ in run), weight) for weight, run in runs]


def split_tags(caption: str, *, brackets: bool = False) -> list[str]:
    """The comma-separated tags of a caption, without space around them and without empty ones.

    With `brackets`, a comma inside of emphasis separates nothing: it would tear the brackets apart.
    """
    pieces = _outside_of_brackets(caption) if brackets else caption.split(",")
    return [tag for piece in pieces if (tag := piece.strip())]


def _outside_of_brackets(caption: str) -> Iterator[str]:
    depth, tag = 0, ""
    for piece in _PIECE.finditer(caption):
        closes = piece["close"] or piece["weight"]
        depth = max(0, depth + bool(piece["open"]) - bool(closes))
        if depth or piece["text"] is None:
            tag += piece[0]
            continue
        first, *others = piece[0].split(",")
        for other in others:
            yield tag + first
            tag, first = "", other
        tag += first
    yield tag


def weigh(hidden: Tensor, weights: Tensor) -> Tensor:
    """Multiply the embeddings [n, tokens, dim] by their tokens' weights [n, tokens], and restore the mean of each [n].

    Rows whose weights are all 1 stay as they are, bit by bit. The mean is over tokens and dimensions, as in webui, but
    of each caption's chunk and not of the batch, so that a caption's embedding does not depend on its neighbours. A
    mean that is 0 but for rounding, as an encoder has whose last normalisation adds nothing, is none to restore.
    """
    values, weights = hidden.float(), weights.to(hidden.device)
    weighed = values * weights[..., None]
    before, after = (each.mean(dim=(1, 2)) for each in (values, weighed))
    rounding = ROUNDING * values.square().mean(dim=(1, 2)).sqrt()
    has_mean = (weights != 1).any(dim=1) & (before.abs() > rounding) & (after.abs() > rounding)
    before, after = (torch.where(has_mean, mean, 1.0) for mean in (before, after))
    return (weighed * (before / after)[:, None, None]).to(hidden.dtype)
