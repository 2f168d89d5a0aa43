"""Finds where a LoRA file's metadata, or its layout, says something else than its tensors.

A loader believes one or the other, and which one differs between loaders: what is found here is a LoRA that acts with
different strengths in different programs, or fails to load in some. Knows nothing of what the tensors hold.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from trainscope.lora.adapters import METADATA_KEY
from trainscope.lora.file import LoraFile, LoraFilePair
from trainscope.lora.header import Strength
from trainscope.lora.tensors import printable

CLOSE = 0.01
"""Relative difference of two alphas that may be one: bfloat16, in which kohya stores them, is good to 0.4 %."""

_ATTENTION = re.compile(r"(to_[qkv]|to_out[._]0|[qkv]_proj|out_proj)$")


def contradictions(file: LoraFile) -> list[str]:
    """What does not agree, one sentence each."""
    found = untrue(file)
    if file.layout == "kohya":
        found += misread_by_diffusers(_stored(file))
    return [printable(sentence) for sentence in found]


def untrue(file: LoraFile) -> list[str]:
    """What of it the file itself is to blame for, and not the one program that misreads it."""
    found = [*file.adapters.problems]
    if file.layout == "kohya":
        found += _kohya_alphas(file) + _kohya_training(file)
    else:
        found += _configured_ranks(file) + _ignored_alphas(file)
    return [printable(sentence) for sentence in found]


def misread_by_diffusers(strengths: Sequence[Strength]) -> list[str]:
    """What diffusers makes of the alphas of a kohya file, where it is not what they say."""
    found = []
    for component in dict.fromkeys(pair.component for pair in strengths):
        pairs = [pair for pair in strengths if pair.component == component]
        usual = Counter(pair.alpha for pair in pairs).most_common(1)[0][0]
        # diffusers 0.42 builds the names of its alpha pattern from kohya's, and those of attentions match nothing.
        wrong = [pair for pair in pairs if pair.alpha != usual and _ATTENTION.search(pair.module)]
        if wrong:
            found.append(
                f"diffusers gives all attention projections of {component} the most frequent alpha, {usual:g}: "
                f"{len(wrong)} have another, such as {wrong[0].module} with {wrong[0].alpha:g}"
            )
    return found


def _stored(file: LoraFile) -> list[Strength]:
    """The pairs with an alpha tensor."""
    return [
        Strength(pair.component, pair.module, pair.rank, pair.alpha)
        for pair in file.pairs
        if pair.alpha_origin == "stored"
    ]


def _kohya_alphas(file: LoraFile) -> list[str]:
    """Alphas that loaders do not agree on."""
    found = []
    if METADATA_KEY in file.metadata and any(pair.alpha_origin == "stored" for pair in file.pairs):
        found.append(f"both {METADATA_KEY} and .alpha tensors are there: diffusers refuses the file")
    for component in dict.fromkeys(pair.component for pair in file.pairs):
        origins = {pair.alpha_origin for pair in file.pairs if pair.component == component}
        if len(origins) > 1:
            found.append(
                f"some modules of {component} have no alpha: kohya takes their rank, diffusers the most frequent alpha"
            )
    return found


def _kohya_training(file: LoraFile) -> list[str]:
    """ss_network_dim and ss_network_alpha against the tensors, where the arguments do not give blocks their own."""
    text = file.metadata.get("ss_network_args", "")
    try:
        arguments = json.loads(text) if text not in ("", "None") else {}
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        return ["ss_network_args is not a JSON object"]
    if any("block" in str(key) for key in arguments):
        return []
    kernels = [pair for pair in file.pairs if math.prod(pair.down.shape[2:]) > 1]
    others = [pair for pair in file.pairs if math.prod(pair.down.shape[2:]) == 1]
    found = []
    for label, pairs, dim, alpha in (
        ("ss_network", others, file.metadata.get("ss_network_dim"), file.metadata.get("ss_network_alpha")),
        ("ss_network_args conv", kernels, arguments.get("conv_dim"), arguments.get("conv_alpha")),
    ):
        found += _disagreeing(f"{label}_dim", dim, [(pair, float(pair.rank)) for pair in pairs], 0.0, "rank")
        stored = [(pair, pair.alpha) for pair in pairs if pair.alpha_origin == "stored"]
        found += _disagreeing(f"{label}_alpha", alpha, stored, CLOSE, "alpha")
    return found


def _configured_ranks(file: LoraFile) -> list[str]:
    """The ranks of adapter configurations against the tensors: a loader makes layers of the former for the latter."""
    found = []
    for prefix, config in file.adapters.configs.items():
        pairs = [pair for pair in file.pairs if pair.prefix == prefix]
        wrong = [pair for pair in pairs if config.rank_of(pair.module) != pair.rank]
        if wrong:
            first = wrong[0]
            found.append(
                f"the adapter configuration says rank {config.rank_of(first.module)} where the tensors have "
                f"{first.rank}, in {len(wrong)} of {len(pairs)} modules, such as {first.module}: it will not load"
            )
    return found


def _ignored_alphas(file: LoraFile) -> list[str]:
    """.alpha tensors in a layout whose own loaders do not read them."""
    wrong = []
    for pair in file.pairs:
        config = file.adapters.configs.get(pair.prefix)
        own = config.alpha_of(pair.module) if config else float(pair.rank)
        if pair.alpha_origin == "stored" and not math.isclose(own, pair.alpha, rel_tol=CLOSE):
            wrong.append((pair, own))
    if not wrong:
        return []
    pair, own = wrong[0]
    example = f"for {pair.module} they take {own:g}, others {pair.alpha:g}"
    return [f"{len(wrong)} modules have .alpha tensors that diffusers and peft do not read: {example}"]


def _disagreeing(
    label: str, said: object, pairs: Iterable[tuple[LoraFilePair, float]], tolerance: float, what: str
) -> list[str]:
    """A number in the metadata against that of each pair. Words such as "Dynamic" and "None" promise nothing."""
    try:
        value = float(str(said))
    except ValueError:
        return []
    pairs = list(pairs)
    wrong = [(pair, own) for pair, own in pairs if not math.isclose(own, value, rel_tol=tolerance)]
    if not wrong:
        return []
    pair, own = wrong[0]
    return [f"{label} is {value:g}, but {len(wrong)} of {len(pairs)} modules have {what} {own:g}, such as {pair.key}"]
