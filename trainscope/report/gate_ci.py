"""A gate's result for CI servers: a measure is a test of JUnit; failures are annotations of GitHub, with a summary.

Works on the plain values of the result. Must not know how a gate decides.
"""

from __future__ import annotations

from typing import Any

from trainscope.report.gate import EXACT, allowed, label, smallest, value, values
from trainscope.report.github import annotation, markdown
from trainscope.report.junit import add, junit_case, suite

Json = dict[str, Any]
_MARKS = {"pass": "✅", "fail": "❌", "missing": "❔", "not comparable": "–"}


def gate_junit(result: Json) -> str:
    """A measure that is missing is skipped, or with `strict` a failure."""
    cases = []
    for one in result["comparisons"]:
        case = junit_case(label(one), "trainscope.gate")
        if one["outcome"] == "fail":
            add(case, "failure", told(one), "\n".join(one["details"]), kind=one["name"])
        elif one["outcome"] == "missing" and result["strict"]:
            add(case, "failure", f"missing: {one['reason']}", kind="missing")
        elif one["outcome"] != "pass":
            add(case, "skipped", f"{one['outcome']}: {one['reason']}")
        cases.append(case)
    for crashed in result["crashed"]:
        case = junit_case(f"rule {crashed.partition(':')[0]}", "trainscope.gate")
        add(case, "error", crashed, kind="crashed")
        cases.append(case)
    return suite(f"trainscope gate {result['candidate']['name']}", cases, result["summary"])


def gate_commands(result: Json) -> str:
    """An annotation for each measure that fails."""
    return "".join(annotation("error", why, title=f"gate: {what}") for what, why in _failing(result))


def failures(result: Json) -> list[str]:
    """A line for each measure that fails."""
    return [f"{what}: {why}" for what, why in _failing(result)]


def _failing(result: Json) -> list[tuple[str, str]]:
    """What fails a gate, and why."""
    found = [(label(one), told(one)) for one in result["comparisons"] if one["outcome"] == "fail"]
    if result["strict"]:
        missing = [one for one in result["comparisons"] if one["outcome"] == "missing"]
        found += [(f"{label(one)} is missing", one["reason"]) for one in missing]
    return found + [("a rule crashed", crashed) for crashed in result["crashed"]]


def gate_summary(result: Json) -> str:
    """Markdown: the verdict, the configuration's keys that differ, and a table of all measures."""
    lines = [f"### trainscope gate: {result['verdict']}, {markdown(result['summary'])}", ""]
    lines += [f"- note: {markdown(note)}" for note in result["notes"]]
    if result["verdict"] == "fail":
        lines += [
            f"- differs: {markdown(key['key'])}: {markdown(str(key['baseline']))} → {markdown(str(key['candidate']))}"
            for key in result["changed"]
        ]
    lines += ["", "| | measure | baseline | candidate | allowed | detectable |", "|---|---|---|---|---|---|"]
    for one in result["comparisons"]:
        if one["method"] == EXACT or one["outcome"] in ("missing", "not comparable"):
            cells = ["", "; ".join([*one["details"], one["reason"]][:3]), "", ""]
        else:
            unit = one["unit"]
            cells = [values(one["baseline"], unit), value(one["candidate"], unit), allowed(one), smallest(one)]
        shown = " | ".join(markdown(cell) for cell in [label(one), *cells])
        lines.append(f"| {_MARKS[one['outcome']]} | {shown} |")
    return "\n".join(lines) + "\n"


def told(one: Json) -> str:
    """Why a measure fails, in a sentence."""
    since = f", from step {one['parts_at']} on" if one["parts_at"] is not None else ""
    if one["method"] == EXACT:
        return "; ".join([*one["details"]] or [one["reason"]]) + since
    both = f"{values(one['baseline'], one['unit'])} → {value(one['candidate'], one['unit'])}"
    return f"{one['title']}: {both}{since}; allowed is {allowed(one)}: {one['reason']}"
