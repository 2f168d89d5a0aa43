"""A report as JUnit XML, which every CI server shows: a rule is a test.

After the schema of Apache Ant's JUnit task, as published by Windy Road. Must not know the run log.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

from trainscope.report.diff import config_diff

Json = dict[str, Any]
_NOT_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render_junit(report: Json, *, failing: set[str], accepted: Mapping[str, str]) -> str:
    """`failing` are the fingerprints of the findings that fail the audit; `accepted` has the reasons of those let pass.

    A finding below the level that fails is a skipped test, and so is a rule that did not apply or could not look.
    """
    found = {finding["code"]: finding for finding in report["findings"]}
    suite = ElementTree.Element("testsuite")
    ElementTree.SubElement(suite, "properties")
    counts = dict.fromkeys(("failures", "errors", "skipped"), 0)
    for rule in report["rules"]:
        finding = found.get(rule["code"])
        case = ElementTree.SubElement(
            suite,
            "testcase",
            name=_clean(f"{rule['code']} {rule['name']}"),
            classname=_clean(f"trainscope.{finding['family'] if finding else rule['code'].rstrip('0123456789')}"),
            time=f"{rule['seconds']:.3f}",
        )
        if rule["outcome"] == "crashed":
            counts["errors"] += 1
            ElementTree.SubElement(case, "error", type="crashed", message=_clean(rule["reason"]))
        elif finding and finding["fingerprint"] in failing:
            counts["failures"] += 1
            failure = ElementTree.SubElement(
                case, "failure", type=finding["severity"], message=_clean(finding["message"])
            )
            failure.text = _clean(_told(finding, report.get("config", "")))
        elif finding or rule["outcome"] != "clear":
            counts["skipped"] += 1
            ElementTree.SubElement(case, "skipped", message=_clean(_why_skipped(rule, finding, accepted)))
    ElementTree.SubElement(suite, "system-out").text = _clean(str(report["verdict"]))
    ElementTree.SubElement(suite, "system-err")
    for name, value in counts.items():
        suite.set(name, str(value))
    suite.set("name", _clean(f"trainscope {report['run'].get('name') or ''}".strip()))
    suite.set("tests", str(len(report["rules"])))
    suite.set("time", f"{sum(rule['seconds'] for rule in report['rules']):.3f}")
    suite.set("timestamp", (str(report["run"].get("created") or "")[:19]) or "1970-01-01T00:00:00")
    suite.set("hostname", _clean(str(report["run"].get("host") or "localhost")))
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


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
