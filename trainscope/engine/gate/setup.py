"""What a run trains, on what, and how its optimizer is set: facts that are equal or not, whatever the seed.

They are read off what was recorded while training, so that a regression of code shows as well as a changed
configuration. Knows nothing of statistics.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

from trainscope.engine.gate.profile import Profile
from trainscope.engine.sandbox import connect, execute
from trainscope.engine.tables import TableSource

Fact = str | float | None

_TRAINED = """
    SELECT CASE WHEN component LIKE 'text_encoder%' THEN 'text encoder' ELSE component END AS place,
        sum(numel)::DOUBLE AS weights, string_agg(DISTINCT dtype, ', ' ORDER BY dtype) AS dtypes,
        string_agg(name || ' ' || shape, ', ' ORDER BY component, name) AS names
    FROM params WHERE coalesce(in_optimizer, requires_grad) GROUP BY 1 ORDER BY 1"""

_SETTINGS = """
    SELECT coalesce(name, 'group ' || "group") AS place,
        string_agg(DISTINCT weight_decay::VARCHAR, ', ' ORDER BY weight_decay::VARCHAR) AS decays,
        string_agg(DISTINCT betas, ', ' ORDER BY betas) AS betas,
        string_agg(DISTINCT eps::VARCHAR, ', ' ORDER BY eps::VARCHAR) AS eps
    FROM groups GROUP BY 1 ORDER BY 1"""

_CLIPPING = """
    SELECT count(clip_coef) AS known, median(grad_norm * clip_coef) FILTER (WHERE clip_coef < 0.999) AS clip_at,
        max(grad_norm) FILTER (WHERE isfinite(grad_norm)) AS largest, (
            SELECT median(samples) FROM (SELECT step, sum(samples) AS samples FROM steps GROUP BY step)
        )::DOUBLE AS samples
    FROM steps"""

_SCALES = "SELECT min(scale_min)::DOUBLE, max(scale_max)::DOUBLE FROM adapter_steps"

_TARGETS = "SELECT string_agg(DISTINCT target_kind, ', ' ORDER BY target_kind) FROM batches"

_PICTURES = """
    SELECT count(*)::DOUBLE, sum(repeats)::DOUBLE, list(concat_ws(' ', digest, split) ORDER BY digest, split),
        list(concat_ws(' ', digest, tokens, truncated) ORDER BY digest, tokens),
        list(concat_ws(' ', digest, bucket) ORDER BY digest, bucket)
    FROM data WHERE dropped IS NULL"""

_UNTRAINED = """
    SELECT avg(loss), any_value(split), max(draws)::DOUBLE FROM evals
    WHERE step = 0 AND weights = 'raw' AND segment = (SELECT min(segment) FROM evals)"""

UNTRAINED_LOSS = "held-out loss before training"
_FED = (
    "caption_dropout",
    "shuffle_captions",
    "keep_tokens",
    "weighted_captions",
    "max_tokens",
    "resolution",
    "flip",
    "random_crop",
)
"""Keys of `data` that decide what the model is fed, of which nothing else in the log tells."""
_CLIPPED, FREE = "gradient clipped to", "gradient not clipped up to"
DATA = ("pictures as a whole", "captions as a whole", "picture sizes as a whole")
"""Facts that are digests."""
_TOLERANCES = {UNTRAINED_LOSS: 0.005, _CLIPPED: 0.002}
"""Relative, by the beginning of a fact's name; what else is a number must be equal."""


def setup_facts(source: TableSource, config: Mapping[str, Any]) -> dict[str, Fact]:
    """Facts by name; one that is not known is left out."""
    with connect(source, ("params", "groups", "steps", "adapter_steps", "batches", "data", "evals")) as connection:
        return {name: value for name, value in _facts(connection, config) if value is not None}


def _facts(connection: Any, config: Mapping[str, Any]) -> Iterator[tuple[str, Fact]]:
    for place, weights, dtypes, names in execute(connection, _TRAINED)[1]:
        yield f"trained weights, {place}", weights
        yield f"their format, {place}", dtypes
        yield f"{place} tensors", _digest(names or "")
    for place, decays, betas, eps in execute(connection, _SETTINGS)[1]:
        yield f"weight decay, {place}", decays
        yield f"betas, {place}", betas
        yield f"eps, {place}", eps
    if config.get("optimizer.type") is not None:
        yield "optimizer", str(config["optimizer.type"])
    (known, clip_at, largest, samples) = execute(connection, _CLIPPING)[1][0]
    if known and clip_at is not None:
        yield "gradient clipped to", clip_at
    elif largest is not None:
        yield "gradient not clipped up to", largest
    yield "samples a step", samples
    lowest, highest = execute(connection, _SCALES)[1][0]
    yield "LoRA scale, lowest", lowest
    yield "LoRA scale, highest", highest
    yield "target", execute(connection, _TARGETS)[1][0][0]
    if config.get("ema.enabled") is not None:
        yield "average of the weights", f"decay {config['ema.decay']:g}" if config["ema.enabled"] else "none"
    for key in _FED:
        if (value := config.get(f"data.{key}")) is not None:
            yield key.replace("_", " "), str(value).lower()
    count, shown, pictures, captions, sizes = execute(connection, _PICTURES)[1][0]
    if count:
        yield "pictures", count
        yield "pictures in an epoch", shown
        yield "pictures as a whole", _digest("\n".join(pictures))
        yield "captions as a whole", _digest("\n".join(captions))
        yield "picture sizes as a whole", _digest("\n".join(sizes))
    loss, split, draws = execute(connection, _UNTRAINED)[1][0]
    if loss is not None and math.isfinite(loss):
        # Of other draws the loss is another: then it is no fact that both runs know.
        yield f"{UNTRAINED_LOSS}, {draws:.0f} draws of {split}", loss


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differences(candidate: Profile, baseline: Profile) -> list[str]:
    """What differs, in words: `weight decay, unet: 0.01 → 0.1`. A fact that only one of them knows is none."""
    old, new = baseline.facts, candidate.facts
    names = [name for name in dict.fromkeys([*old, *new]) if name != FREE]
    differ = [name for name in names if _differs(name, old, new)]
    found = [_told(name, old, new) for name in differ if plainer(name) not in differ]
    return [*found, *_clipping(old, new)]


def _differs(name: str, old: Mapping[str, Fact], new: Mapping[str, Fact]) -> bool:
    if name in old and name in new:
        return not is_same(name, old[name], new[name])
    # A part of the model that only one of them trains is in the facts of that one alone.
    return name.startswith("trained weights,") and bool(old and new)


def is_same(name: str, before: Fact, after: Fact) -> bool:
    """Whether two runs agree on a fact."""
    if isinstance(before, float) and isinstance(after, float):
        tolerance = next((each for start, each in _TOLERANCES.items() if name.startswith(start)), 1e-9)
        return math.isclose(before, after, rel_tol=tolerance)
    return before == after


def plainer(name: str) -> str:
    """The fact that says more than this digest, where both differ."""
    if name in DATA:
        return "pictures"
    return f"trained weights, {name.removesuffix(' tensors')}"


def _told(name: str, old: Mapping[str, Fact], new: Mapping[str, Fact]) -> str:
    if name in DATA:
        return f"{name.removesuffix(' as a whole')} are others"
    if name.endswith(" tensors"):
        return f"the trained tensors of the {name.removesuffix(' tensors')} are others"
    return f"{name}: {_shown(old.get(name))} → {_shown(new.get(name))}"


def _clipping(old: Mapping[str, Fact], new: Mapping[str, Fact]) -> Iterator[str]:
    """One run was clipped and the other was not, though its gradient was larger than the limit of the first."""
    for clipped, free, sentence in ((old, new, "{} → not clipped"), (new, old, "not clipped → {}")):
        limit, largest = clipped.get(_CLIPPED), free.get(FREE)
        if isinstance(limit, float) and isinstance(largest, float) and largest > limit * 1.01:
            yield f"{_CLIPPED}: {sentence.format(_shown(limit))}"


def _shown(value: Fact) -> str:
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:,.0f}" if value == int(value) and abs(value) >= 1 else f"{value:.4g}"
    return value
