"""One finding from a rule's hits: the worst place, the message, what to do, the fingerprint.

Sees one rule at a time; how findings belong together is in `diagnose`.
"""

from __future__ import annotations

import hashlib
import math
import string
from collections.abc import Mapping, Sequence
from typing import Any

from trainscope.engine.evaluate import Evaluation
from trainscope.engine.header import RemedySpec, placeholder
from trainscope.engine.hits import Hit
from trainscope.engine.proofs import Proofs
from trainscope.schema import SEVERITIES, Finding, Place, Plot, Reference, RefutedAdvice, Remedy

MAX_PLACES = 10


def findings(
    evaluations: Sequence[Evaluation], config: Mapping[str, Any], proofs: Proofs | None = None
) -> list[Finding]:
    """The findings of all rules that fired, the gravest first."""
    found = [merge(evaluation, config, proofs) for evaluation in evaluations if evaluation.hits]
    return sorted(found, key=lambda one: (-SEVERITIES.index(one.severity), -one.score, one.code))


def merge(evaluation: Evaluation, config: Mapping[str, Any], proofs: Proofs | None = None) -> Finding:
    """Merge the hits of a rule that fired."""
    header = evaluation.rule.header
    hits = sorted(evaluation.hits, key=_gravity)
    worst = hits[0]
    places = _places(hits)
    evidence = {**worst.evidence, "places": len(places)}
    values = {**evaluation.thresholds, **worst.values(), "places": len(places)}
    proven = (proofs or {}).get(header.code, {})
    return Finding(
        code=header.code,
        name=header.name,
        family=header.family,
        kind=header.kind,
        severity=header.severity,
        summary=header.summary,
        message=format_message(header.message, values),
        where=places[:MAX_PLACES],
        first_step=min((hit.first_step for hit in hits if hit.first_step is not None), default=None),
        last_step=max((hit.last_step for hit in hits if hit.last_step is not None), default=None),
        value=worst.value,
        threshold=worst.threshold,
        score=worst.score,
        evidence=evidence,
        remedies=_remedies(header.remedies, values, config, proven),
        refuted=[
            RefutedAdvice(
                spec.advice, _resolved(spec.set, values) or spec.set, proven.get("refuted", {}).get(spec.advice)
            )
            for spec in header.refuted
        ],
        references=[Reference(spec.url, spec.claim) for spec in header.references],
        plots=[Plot(spec.series, spec.title, worst.threshold if spec.threshold else None) for spec in header.plot],
        fingerprint=fingerprint(header.code, hits),
    )


def fingerprint(code: str, hits: Sequence[Hit]) -> str:
    """Code and places, not steps: the same defect in the next run has the same fingerprint."""
    places = sorted({f"{hit.where_kind}\t{hit.where_name}" for hit in hits})
    return hashlib.sha256("\n".join([code, *places]).encode()).hexdigest()[:16]


def _gravity(hit: Hit) -> tuple[Any, ...]:
    """Sorts the worst hit first: by score, then by how far the value lies beyond the threshold, then by name."""
    value = hit.value
    if value is None:
        beyond = -math.inf
    elif not math.isfinite(value):
        beyond = math.inf
    else:
        beyond = value if hit.threshold is None else abs(value - hit.threshold)
    return (-hit.score, -beyond, hit.where_kind, hit.where_name, hit.first_step or 0)


def _places(hits: Sequence[Hit]) -> list[Place]:
    """One place for each distinct name, in the order of the hits; its steps span all hits there."""
    by_place: dict[tuple[str, str], list[Hit]] = {}
    for hit in hits:
        by_place.setdefault(hit.place, []).append(hit)
    return [
        Place(
            kind,
            name,
            there[0].value,
            there[0].score,
            min((hit.first_step for hit in there if hit.first_step is not None), default=None),
            max((hit.last_step for hit in there if hit.last_step is not None), default=None),
        )
        for (kind, name), there in by_place.items()
    ]


class _Forgiving(string.Formatter):
    """Formats what it can: a missing or NULL value is "n/a", one that does not fit its format is shown as it is."""

    def get_value(self, key: int | str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        return kwargs.get(str(key))

    def format_field(self, value: Any, format_spec: str) -> str:
        if value is None:
            return "n/a"
        try:
            return str(format(value, format_spec))
        except (TypeError, ValueError, OverflowError):
            return str(value)


def format_message(template: str, values: Mapping[str, Any]) -> str:
    return _Forgiving().vformat(template, (), values)


def _remedies(
    specs: Sequence[RemedySpec],
    values: Mapping[str, Any],
    config: Mapping[str, Any],
    proven: Mapping[str, Mapping[str, Any]],
) -> list[Remedy]:
    """The remedies that make sense for this configuration, their columns filled in."""
    offered = []
    for spec in specs:
        if config and not all(key in config and test.matches(config[key]) for key, test in spec.when.items()):
            continue
        resolved = _resolved(spec.set, values)
        if resolved is None:
            continue
        # What the configuration already says is no part of a remedy.
        patch = {key: value for key, value in resolved.items() if key not in config or config[key] != value}
        if resolved and not patch:
            continue
        proof = proven.get("cured", {}).get(spec.title)
        offered.append(Remedy(spec.title, patch, spec.cost, dict(spec.elsewhere), proof))
    return offered


def _resolved(patch: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any] | None:
    """The patch with "{column}" replaced by that column of the worst hit; None where a column has no usable value."""
    resolved = {}
    for key, value in patch.items():
        column = placeholder(value)
        actual = value if column is None else values.get(column)
        if actual is None or (isinstance(actual, float) and not math.isfinite(actual)):
            return None
        resolved[key] = actual
    return resolved
