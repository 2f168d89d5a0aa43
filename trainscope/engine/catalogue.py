"""What holds between rules: codes are unique, and `explains` leads from causes through mechanisms to symptoms.

Knows headers only.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from trainscope.engine.problems import did_you_mean
from trainscope.schema import Kind

if TYPE_CHECKING:
    from trainscope.engine.rule import Rule

_MAY_EXPLAIN: dict[Kind, tuple[Kind, ...]] = {
    "symptom": (),
    "mechanism": ("mechanism", "symptom"),
    "cause": ("mechanism", "symptom"),
    "risk": ("risk", "cause", "mechanism", "symptom"),
}


def explains_graph(rules: Sequence[Rule]) -> dict[str, tuple[str, ...]]:
    return {rule.code: rule.header.explains for rule in rules}


def reachable(graph: Mapping[str, Sequence[str]], code: str) -> set[str]:
    """Every code that `code` explains, directly or through others."""
    found: set[str] = set()
    pending = list(graph.get(code, ()))
    while pending:
        other = pending.pop()
        if other not in found:
            found.add(other)
            pending.extend(graph.get(other, ()))
    return found


def depth(graph: Mapping[str, Sequence[str]], code: str) -> int:
    """Longest way from a code to something that explains nothing; the graph has no cycles."""
    return max((1 + depth(graph, other) for other in graph.get(code, ())), default=0)


def catalogue_problems(
    rules: Sequence[Rule], *, also_known: Collection[str] = (), complete: bool = True
) -> list[tuple[Rule, list[str]]]:
    """The rules that do not fit into the catalogue, with the reasons.

    `also_known` are codes of rules that are broken themselves; with `complete`, a code that is not there is wrong.
    """
    first: dict[str, Rule] = {}
    for rule in rules:
        first.setdefault(rule.code, rule)
    graph = explains_graph(list(first.values()))
    found = []
    for rule in rules:
        if first[rule.code] is not rule:
            found.append((rule, [f"code {rule.code} is taken by {first[rule.code].folder}"]))
            continue
        problems = []
        for other in rule.header.explains:
            if other in first:
                problems += _direction_problems(rule, first[other])
            elif complete and other not in also_known:
                problems.append(f"explains {other}: no such rule{did_you_mean(other, first)}")
        if rule.code in reachable(graph, rule.code):
            problems.append(f"explains itself: {' -> '.join(_cycle(graph, rule.code))}")
        if problems:
            found.append((rule, problems))
    return found


def _direction_problems(rule: Rule, other: Rule) -> list[str]:
    kind, explained = rule.header.kind, other.header.kind
    if explained in _MAY_EXPLAIN[kind]:
        return []
    allowed = " or ".join(f"a {name}" for name in _MAY_EXPLAIN[kind]) or "nothing"
    return [f"explains {other.code}: a {kind} explains {allowed}, and {other.code} is a {explained}"]


def _cycle(graph: Mapping[str, Sequence[str]], start: str) -> list[str]:
    path = [start]
    while len(path) == 1 or path[-1] != start:
        path.append(next(code for code in graph[path[-1]] if code == start or start in reachable(graph, code)))
    return path
