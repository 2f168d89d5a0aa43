"""One story out of many findings: what is seen, how it comes about, why.

Knows findings and which rule explains which; never looks at the tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trainscope.engine.catalogue import depth, explains_graph, reachable
from trainscope.engine.rule import Rule
from trainscope.schema import SEVERITIES, Diagnosis, Finding, RankedCause, Remedy, RuleOutcome

NO_CAUSE = "the cause was not found"


NAMES = frozenset({"Prodigy", "Adam", "Lion"})
"""What keeps its capital inside a sentence and has no second one to tell."""


def diagnose(
    findings: Sequence[Finding], rules: Sequence[Rule], outcomes: Sequence[RuleOutcome] = ()
) -> list[Diagnosis]:
    """Group what fired into diagnoses, the gravest first.

    `rules` is the whole catalogue: a cause explains a symptom also through a mechanism that did not fire.
    """
    graph = explains_graph(rules)
    explained = {finding.code: reachable(graph, finding.code) for finding in findings}
    blind = [outcome.code for outcome in outcomes if outcome.outcome in ("not_observable", "crashed")]
    stories = []
    for component in _components(findings, explained):
        symptoms = _gravest_first(component, "symptom")
        mechanisms = _gravest_first(component, "mechanism")
        causes = sorted(
            (finding for finding in component if finding.kind in ("cause", "risk")),
            key=lambda finding: (-finding.score, -depth(graph, finding.code), finding.code),
        )
        unasked = [code for code in blind if any(finding.code in reachable(graph, code) for finding in component)]
        severity = max((finding.severity for finding in component), key=SEVERITIES.index)
        diagnosis = Diagnosis(
            severity=severity,
            title=_title(symptoms, mechanisms, causes, unasked),
            symptoms=[finding.fingerprint for finding in symptoms],
            mechanisms=[finding.fingerprint for finding in mechanisms],
            causes=[RankedCause(finding.fingerprint, finding.score) for finding in causes],
            remedies=_remedies(causes or mechanisms or symptoms),
        )
        top = max(finding.score for finding in causes or component)
        stories.append((-SEVERITIES.index(severity), -top, min(finding.code for finding in component), diagnosis))
    return [story[-1] for story in sorted(stories, key=lambda story: story[:-1])]


def _components(findings: Sequence[Finding], explained: Mapping[str, set[str]]) -> list[list[Finding]]:
    """Findings that an explanation connects, in either direction and through one another."""
    left = list(findings)
    components = []
    while left:
        component = [left.pop(0)]
        for member in component:  # grows while it is walked
            linked = [
                other for other in left if other.code in explained[member.code] or member.code in explained[other.code]
            ]
            left = [other for other in left if other not in linked]
            component += linked
        components.append(component)
    return components


def _gravest_first(component: Sequence[Finding], kind: str) -> list[Finding]:
    return sorted(
        (finding for finding in component if finding.kind == kind),
        key=lambda finding: (-SEVERITIES.index(finding.severity), -finding.score, finding.code),
    )


def _title(
    symptoms: Sequence[Finding], mechanisms: Sequence[Finding], causes: Sequence[Finding], unasked: Sequence[str]
) -> str:
    seen = [*symptoms, *mechanisms]
    if causes:
        parts = [seen[0].summary] if seen else []
        return ": ".join(_clause(part) for part in [*parts, causes[0].summary])
    if not symptoms:
        return _clause(mechanisms[0].summary)
    how = [_clause(mechanisms[0].summary)] if mechanisms else []
    return f"{_clause(symptoms[0].summary)}: {'; '.join([*how, NO_CAUSE])}{_could_not_look(unasked)}"


def _could_not_look(codes: Sequence[str]) -> str:
    return f" ({_listed(codes)} could not look)" if codes else ""


def _listed(codes: Sequence[str]) -> str:
    return ", ".join(codes[:3]) + (f" and {len(codes) - 3} more" if len(codes) > 3 else "")


def _clause(summary: str) -> str:
    return summary.strip().rstrip(".")


def _remedies(findings: Sequence[Finding]) -> list[Remedy]:
    """The remedies of the findings in their order, each patch once."""
    found: list[Remedy] = []
    for remedy in (remedy for finding in findings for remedy in finding.remedies):
        # Two remedies without a patch are advices in words, and different ones.
        if not any(remedy.config_patch and remedy.config_patch == other.config_patch for other in found):
            found.append(remedy)
    return found


def verdict(
    diagnoses: Sequence[Diagnosis],
    findings: Sequence[Finding],
    outcomes: Sequence[RuleOutcome],
    run: Mapping[str, Any] | None = None,
) -> str:
    """One sentence: how many problems and the gravest, or how much looked and found nothing."""
    problems = [diagnosis for diagnosis in diagnoses if diagnosis.severity != "info"]
    remarks = len(diagnoses) - len(problems)
    if problems:
        text = f"{_count(len(problems), 'problem')}{': ' if len(problems) == 1 else ', the gravest: '}"
        text += _because(problems[0], findings)
    else:
        text = _nothing(outcomes)
    if remarks:
        text += f"; {_count(remarks, 'remark')}"
    crashed = [outcome.code for outcome in outcomes if outcome.outcome == "crashed"]
    if crashed:
        text += f"; {_count(len(crashed), 'rule')} crashed ({_listed(crashed)})"
    return _state(run or {}) + text


def _because(diagnosis: Diagnosis, findings: Sequence[Finding]) -> str:
    summaries = {finding.fingerprint: _clause(finding.summary) for finding in findings}
    seen = [*diagnosis.symptoms, *diagnosis.mechanisms]
    if seen and diagnosis.causes:
        return f"{_inside(summaries[seen[0]])}, because {_inside(summaries[diagnosis.causes[0].finding])}"
    if diagnosis.symptoms and diagnosis.mechanisms:
        how = _inside(summaries[diagnosis.mechanisms[0]])
        return f"{_inside(summaries[seen[0]])}, because {how}; why was not found"
    return _inside(diagnosis.title)


def _inside(clause: str) -> str:
    """A clause inside a sentence: an ordinary first word loses its capital, a name or an abbreviation keeps it."""
    first = clause.partition(" ")[0].removesuffix("'s")
    is_name = not first[1:].islower() or first in NAMES
    return clause if is_name and len(first) > 1 else clause[0].lower() + clause[1:]


def _nothing(outcomes: Sequence[RuleOutcome]) -> str:
    looked = sum(outcome.outcome in ("fired", "clear") for outcome in outcomes)
    blind = [outcome.code for outcome in outcomes if outcome.outcome == "not_observable"]
    if not looked:
        reason = (
            f": {_count(len(blind), 'rule')} could not ({_listed(blind)})" if blind else ": no rule applies to this run"
        )
        return f"Nothing was looked at{reason}"
    text = f"Nothing wrong was found: {_count(looked, 'rule')} looked"
    return f"{text}, {len(blind)} could not ({_listed(blind)})" if blind else text


def _state(run: Mapping[str, Any]) -> str:
    step = run.get("last_step")
    up_to, at = (f", up to step {step}", f" at step {step}") if step is not None else ("", "")
    states = {"running": f"running{up_to}: ", "crashed": f"crashed{at}: ", "interrupted": f"interrupted{at}: "}
    return states.get(str(run.get("status")), "")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
