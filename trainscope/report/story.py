"""The order in which a report is told: verdict, diagnoses, what was not observable, and the rest.

Turns report.json's dict into the same story for the page and for the terminal. Must not know HTML, terminals or rules.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from trainscope.report.wording import brief, counted, number, one_line, share, steps

Json = dict[str, Any]

OUTCOMES = ("fired", "clear", "not_applicable", "not_observable", "crashed")
HEADLINE_FACTS = 3
"""Of the run's facts, how many stand under the verdict; the rest are at the end."""
ROLES = ("first", "also", "instead")
MIN_SCORE = 0.5
"""From this share of the trouble on a further cause needs its remedy too."""
_RANKS = {"error": 3, "warning": 2, "info": 1}


@dataclass(frozen=True)
class Cause:
    """A finding among a diagnosis's causes."""

    finding: Json
    score: Any


@dataclass(frozen=True)
class Action:
    """A remedy; `codes` are the findings that propose it.

    `role` is first, also (what a further cause that weighs much needs beside it, as `trainscope fix` does) or instead.
    """

    remedy: Json
    codes: list[str]
    role: str = "instead"


@dataclass
class Card:
    """A diagnosis with its findings looked up; findings that no diagnosis tells make a card each."""

    severity: str
    title: str
    symptoms: list[Json] = field(default_factory=list)
    mechanisms: list[Json] = field(default_factory=list)
    causes: list[Cause] = field(default_factory=list)
    remedies: list[Action] = field(default_factory=list)
    refuted: list[Json] = field(default_factory=list)
    references: list[Json] = field(default_factory=list)

    @property
    def seen(self) -> str:
        """The title without the cause, where `because` says it."""
        return _clause([*self.symptoms, *self.mechanisms][0]["summary"]) if self.because else self.title

    @property
    def because(self) -> str:
        """The likeliest cause in words, where something else is seen of it."""
        return _clause(self.causes[0].finding["summary"]) if self.causes and self.symptoms + self.mechanisms else ""

    @property
    def findings(self) -> list[Json]:
        """Every finding of the card once: seen, how, why."""
        return _once([*self.symptoms, *self.mechanisms, *(cause.finding for cause in self.causes)], "fingerprint")


@dataclass(frozen=True)
class Story:
    """A report, ready to be told. `status` is error, warning, info, clear or unknown."""

    verdict: str
    status: str
    status_word: str
    headline: list[str]
    cards: list[Card]
    others: list[Card]
    counts: dict[str, int]
    by_outcome: dict[str, list[Json]]
    not_observable: list[tuple[str, list[Json]]]


def tell(report: Json) -> Story:
    """Order a report's content for a reader."""
    findings = {finding["fingerprint"]: finding for finding in report["findings"]}
    cards = [_card(diagnosis, findings) for diagnosis in report["diagnoses"]]
    told = {finding["fingerprint"] for card in cards for finding in card.findings}
    others = [_lone(finding) for finding in report["findings"] if finding["fingerprint"] not in told]
    by_outcome = {
        outcome: sorted((rule for rule in report["rules"] if rule["outcome"] == outcome), key=lambda rule: rule["code"])
        for outcome in OUTCOMES
    }
    counts = {outcome: len(rules) for outcome, rules in by_outcome.items()}
    status = _status([*cards, *others], counts)
    return Story(
        verdict=one_line(report["verdict"]) or "No verdict",
        status=status,
        status_word=_WORDS[status],
        headline=_headline(report),
        cards=cards,
        others=others,
        counts=counts,
        by_outcome=by_outcome,
        not_observable=_grouped(by_outcome["not_observable"]),
    )


_WORDS = {
    "error": "Error",
    "warning": "Warning",
    "info": "Note",
    "clear": "Clear",
    "unknown": "Not observable",
}


CAME_OVER = ("match", "as asked")
"""Outcomes of a piece of state at a resume that are in order."""


def compared(pieces: dict[str, dict[str, int]]) -> int:
    """How many pieces of state a resume compared."""
    return sum(sum(counts.values()) for counts in pieces.values())


def differing(pieces: dict[str, dict[str, int]]) -> int:
    """How many of them did not come over a resume as they were saved, or as the configuration asks."""
    return sum(count for counts in pieces.values() for status, count in counts.items() if status not in CAME_OVER)


def evidence(finding: Json, most: int = 8) -> list[tuple[str, str]]:
    """Name a finding's numbers, none of them twice, the threshold beside the value."""
    named = [(str(name).replace("_", " "), value) for name, value in finding["evidence"].items()]
    value, threshold = finding["value"], finding["threshold"]
    named = [(name, item) for name, item in named if (name, item) != ("places", 1)]
    if value is not None:
        named.sort(key=lambda pair: pair[1] != value)  # the value first, under the rule's own name for it
        if not named or named[0][1] != value:
            named.insert(0, ("measured", value))
    numbers = [(one_line(name), brief(item)) for name, item in named[:most]]
    if threshold is not None:
        numbers.insert(1, ("threshold", brief(threshold)))
    if len(finding["where"]) == 1 and finding["where"][0]["kind"] != "run":
        place = finding["where"][0]
        numbers.append(("where", one_line(f"{place['kind']} {place['name']}")))
    if finding["first_step"] is not None:
        numbers.append(("when", steps(finding["first_step"], finding["last_step"])))
    return numbers


def _status(cards: list[Card], counts: dict[str, int]) -> str:
    worst = max((_RANKS.get(card.severity, 0) for card in cards), default=0)
    if worst:
        return next(name for name, rank in _RANKS.items() if rank == worst)
    # silence means something only where a rule looked
    return "clear" if counts["clear"] and not counts["crashed"] else "unknown"


def _headline(report: Json) -> list[str]:
    """Say in a few words which run this is."""
    run = report["run"]
    words = [one_line(str(run[key])) for key in ("name", "id") if run.get(key)][:1]
    done, planned, status = number(run.get("steps")), number(run.get("planned_steps")), run.get("status")
    if status == "running" and done is not None:
        words.append(f"running, up to step {brief(int(done))}")
    else:
        words += [one_line(str(status))] if status else []
        if done is not None and planned is not None and planned != done:
            words.append(f"{brief(int(done))} of {counted(int(planned), 'step')}")
        elif done is not None:
            words.append(counted(int(done), "step"))
    facts = [one_line(fact["value"]) for fact in report["facts"][:HEADLINE_FACTS]]
    return [word for word in (*words, *facts) if word and len(word) <= 60]


def _card(diagnosis: Json, findings: dict[str, Json]) -> Card:
    causes = [
        Cause(findings[cause["finding"]], cause["score"])
        for cause in diagnosis["causes"]
        if cause["finding"] in findings
    ]
    card = Card(
        severity=diagnosis["severity"],
        title=one_line(diagnosis["title"]),
        symptoms=[findings[name] for name in diagnosis["symptoms"] if name in findings],
        mechanisms=[findings[name] for name in diagnosis["mechanisms"] if name in findings],
        causes=sorted(causes, key=lambda cause: -share(cause.score)),
    )
    return _with_advice(card, diagnosis["remedies"])


def _clause(summary: str) -> str:
    return one_line(summary).rstrip(".")


def _lone(finding: Json) -> Card:
    card = Card(severity=finding["severity"], title=one_line(finding["summary"]))
    if finding["kind"] in ("cause", "risk"):
        card.causes = [Cause(finding, finding["score"])]
    elif finding["kind"] == "mechanism":
        card.mechanisms = [finding]
    else:
        card.symptoms = [finding]
    return _with_advice(card, finding["remedies"])


def _with_advice(card: Card, remedies: list[Json]) -> Card:
    needed = _needed(card)
    roles = [
        "first" if rank == 0 else "also" if _same(remedy) in needed else "instead"
        for rank, remedy in enumerate(remedies)
    ]
    actions = [
        Action(remedy, _proposed_by(remedy, card.findings), role) for remedy, role in zip(remedies, roles, strict=True)
    ]
    card.remedies = sorted(actions, key=lambda action: ROLES.index(action.role))
    card.refuted = _once([advice for finding in _causes_first(card) for advice in finding["refuted"]], "advice")
    card.references = _once([link for finding in _causes_first(card) for link in finding["references"]], "url")
    return card


def _needed(card: Card) -> list[tuple[Any, ...]]:
    """The remedies of causes that weigh enough to be applied together: of each the first, of a key one alone."""
    needed: list[tuple[Any, ...]] = []
    patched: set[str] = set()
    for rank, cause in enumerate(card.causes):
        remedy = next((remedy for remedy in cause.finding["remedies"] if remedy["config_patch"]), None)
        if remedy is None or (rank > 0 and share(cause.score) < MIN_SCORE) or patched & remedy["config_patch"].keys():
            continue
        patched |= remedy["config_patch"].keys()
        needed.append(_same(remedy))
    return needed


def _same(remedy: Json) -> tuple[Any, ...]:
    return (remedy["title"], remedy["config_patch"])


def _causes_first(card: Card) -> list[Json]:
    return _once([*(cause.finding for cause in card.causes), *card.mechanisms, *card.symptoms], "fingerprint")


def _proposed_by(remedy: Json, findings: Iterable[Json]) -> list[str]:
    return [
        finding["code"] for finding in findings if any(_same(other) == _same(remedy) for other in finding["remedies"])
    ]


def _grouped(rules: list[Json]) -> list[tuple[str, list[Json]]]:
    groups: dict[str, list[Json]] = {}
    for rule in rules:
        groups.setdefault(one_line(rule["reason"]) or "no reason given", []).append(rule)
    return sorted(groups.items(), key=lambda group: -len(group[1]))


def _once(items: Iterable[Json], key: str) -> list[Json]:
    first: dict[Any, Json] = {}
    for item in items:
        first.setdefault(item[key], item)
    return list(first.values())
