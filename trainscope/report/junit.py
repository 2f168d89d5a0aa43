"""JUnit XML, which every CI server shows; of an audit: a rule is a test.

After the schema of Apache Ant's JUnit task, as published by Windy Road. Must not know the run log.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from trainscope.report.diff import config_diff

Json = dict[str, Any]
_NOT_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render_junit(report: Json, *, failing: set[str], accepted: Mapping[str, str]) -> str:
    """`failing` are the fingerprints of the findings that fail the audit; `accepted` has the reasons of those let pass.

    A finding below the level that fails is a skipped test, and so is a rule that did not apply or could not look.
    """
    found = {finding["code"]: finding for finding in report["findings"]}
    cases = []
    for rule in report["rules"]:
        finding = found.get(rule["code"])
        family = finding["family"] if finding else rule["code"].rstrip("0123456789")
        case = junit_case(f"{rule['code']} {rule['name']}", f"trainscope.{family}", rule["seconds"])
        if rule["outcome"] == "crashed":
            add(case, "error", rule["reason"], kind="crashed")
        elif finding and finding["fingerprint"] in failing:
            add(case, "failure", finding["message"], _told(finding, report.get("config", "")), kind=finding["severity"])
        elif finding or rule["outcome"] != "clear":
            add(case, "skipped", _why_skipped(rule, finding, accepted))
        cases.append(case)
    run = report["run"]
    name = f"trainscope {run.get('name') or ''}".strip()
    return suite(name, cases, str(report["verdict"]), created=run.get("created"), host=run.get("host"))


def junit_case(name: str, classname: str, seconds: float = 0.0) -> Element:
    """A test that passed, until something is added."""
    return Element("testcase", name=_clean(name), classname=_clean(classname), time=f"{seconds:.3f}")


def add(case: Element, outcome: str, message: str, text: str = "", *, kind: str = "") -> None:
    """Make a test an error, a failure or skipped."""
    child = SubElement(case, outcome, message=_clean(message))
    if kind:
        child.set("type", kind)
    child.text = _clean(text) or None


def suite(name: str, cases: Sequence[Element], out: str, *, created: str | None = None, host: str | None = None) -> str:
    """The file. `created` is a time in ISO 8601, of which the schema takes no zone."""
    root = Element("testsuite", name=_clean(name), tests=str(len(cases)))
    SubElement(root, "properties")
    root.extend(cases)
    SubElement(root, "system-out").text = _clean(out)
    SubElement(root, "system-err")
    for attribute, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        root.set(attribute, str(sum(case.find(tag) is not None for case in cases)))
    root.set("time", f"{sum(float(case.attrib['time']) for case in cases):.3f}")
    root.set("timestamp", str(created or "1970-01-01T00:00:00")[:19])
    root.set("hostname", _clean(str(host or "localhost")))
    indent(root)
    return tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _why_skipped(rule: Json, finding: Json | None, accepted: Mapping[str, str]) -> str:
    if finding is None:
        return f"{rule['outcome'].replace('_', ' ')}: {rule['reason']}"
    reason = accepted.get(finding["fingerprint"])
    return f"accepted: {reason}" if reason else f"{finding['severity']}, which does not fail: {finding['message']}"


def _told(finding: Json, config: str) -> str:
    places = [f"{place['kind']} {place['name']}" for place in finding["where"]]
    lines = [finding["summary"], finding["message"]]
    if finding["first_step"] is not None:
        lines.append(f"since step {finding['first_step']}")
    if places:
        lines.append(f"where: {', '.join(places[:8])}")
    for remedy in finding["remedies"][:1]:
        lines += [f"remedy: {remedy['title']}", config_diff(config, remedy["config_patch"])]
    return "\n".join([*lines, f"fingerprint: {finding['fingerprint']}"])


def _clean(text: str) -> str:
    """Without what XML cannot hold."""
    return _NOT_XML.sub("\ufffd", text)
