"""The tiny models' text side: a real `CLIPTokenizer` with a small vocabulary of its own, and a random `CLIPTextModel`.

The vocabulary covers every byte, so that any caption can be encoded, and merges the words of the example captions
into single tokens, as CLIP's does with common words. Knows nothing of images or of training.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WORDS = """
a an the of on in with and at by to is
red green blue yellow purple orange cyan pink brown black white grey gray
circle square triangle star hexagon cross heart diamond shape background
photo picture image painting drawing cat dog person woman man house style sks
small large big left right top bottom center
""".split()  # noqa: SIM905 - reads better than a list of strings

START, END = "<|startoftext|>", "<|endoftext|>"
MAX_TOKENS = 77
WIDTH = 32

_END_OF_WORD = "</w>"


def byte_letters() -> list[str]:
    """The printable letters that stand for the 256 bytes (GPT-2's byte-level BPE; openai/CLIP, simple_tokenizer.py)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + rank) for rank, byte in enumerate(others)}
    return [letters[byte] for byte in range(256)]


def learn_merges(words: list[str]) -> list[tuple[str, str]]:
    """Learn byte-pair merges until each word is one token (Sennrich et al. 2016); of a tie the first in order."""
    splits = [[*word[:-1], word[-1] + _END_OF_WORD] for word in words]
    merges: list[tuple[str, str]] = []
    while pairs := Counter(pair for parts in splits for pair in itertools.pairwise(parts)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        splits = [_apply(best, parts) for parts in splits]
    return merges


def _apply(merge: tuple[str, str], parts: list[str]) -> list[str]:
    merged: list[str] = []
    for part in parts:
        if merged and (merged[-1], part) == merge:
            merged[-1] += part
        else:
            merged.append(part)
    return merged


def build_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The vocabulary and the merges, in CLIP's order: bytes, bytes that end a word, merges, start, end."""
    letters = byte_letters()
    merges = learn_merges(WORDS)
    tokens = [*letters, *(letter + _END_OF_WORD for letter in letters), *("".join(merge) for merge in merges)]
    tokens += [START, END]
    return {token: number for number, token in enumerate(tokens)}, merges


@dataclass(frozen=True)
class Encoder:
    """A text encoder, by default as Stable Diffusion 1.5's: one of OpenAI's CLIP. `projected`: its summary is, too."""

    width: int = WIDTH
    heads: int = 2
    activation: str = "quick_gelu"
    pad_token: str = END
    projected: bool = False


def build_tokenizer(pad_token: str = END) -> Any:
    """Build the `CLIPTokenizer`, at most 77 tokens with start and end."""
    from transformers import CLIPTokenizer

    vocabulary, merges = build_vocabulary()
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS, pad_token=pad_token)


def write_vocabulary(folder: Path) -> None:
    """Write vocab.json and merges.txt: transformers 5 writes only tokenizer.json, which other trainers do not read."""
    vocabulary, merges = build_vocabulary()
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def build_text_encoder(tokenizer: Any, encoder: Encoder) -> Any:
    """Build the `CLIPTextModel` (…`WithProjection`), drawing from the global generator; the caller forks it."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=encoder.width,
        intermediate_size=2 * encoder.width,
        projection_dim=encoder.width,
        num_hidden_layers=2,
        num_attention_heads=encoder.heads,
        hidden_act=encoder.activation,
        max_position_embeddings=MAX_TOKENS,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return (CLIPTextModelWithProjection if encoder.projected else CLIPTextModel)(config).eval()
