"""Combinations of choices to try: few rows with every pair, and only what a configuration can ask for."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from trainscope.config.load import parse_config
from trainscope.errors import ConfigError
from trainscope.proof.runs import config_text


def pairwise(
    axes: Sequence[Mapping[str, Any]], allowed: Callable[[tuple[str, ...]], bool] = lambda row: True
) -> list[tuple[str, ...]]:
    """Few rows, one choice from each axis, that have every allowed pair of choices among them."""
    candidates = [row for row in itertools.product(*axes) if allowed(row)]
    missing = {pair for row in candidates for pair in pairs(row)}
    chosen = []
    while missing:
        best = max(candidates, key=lambda row: len(missing.intersection(pairs(row))))
        missing.difference_update(pairs(best))
        chosen.append(best)
    return chosen


def pairs(row: Sequence[str]) -> Iterator[tuple[tuple[int, str], tuple[int, str]]]:
    return itertools.combinations(enumerate(row), 2)


def is_possible(*changes: Mapping[str, Any]) -> bool:
    """Whether a configuration with these keys is accepted."""
    values = {"model.base": "tiny:sd15", "train.steps": 1, "data.dir": "."}
    for part in changes:
        values.update(part)
    try:
        parse_config(config_text(values))
    except ConfigError:
        return False
    return True
