"""A report as SARIF 2.1.0 (OASIS), which code hosts show beside the lines that it points at.

Must not know the run log.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import trainscope
from trainscope.report.anchors import ConfigFile
from trainscope.report.diff import assignments

Json = dict[str, Any]
SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_LEVELS = {"error": "error", "warning": "warning", "info": "note"}


def render_sarif(report: Json, config: ConfigFile, *, accepted: Mapping[str, str]) -> str:
    """Each finding is a result at the line of cfg.toml that its remedy changes; accepted ones are suppressed.

    `accepted` has the reasons by fingerprint.
    """
    findings = report["findings"]
    run = {
        "tool": {
            "driver": {
                "name": "trainscope",
                "version": trainscope.__version__,
                "rules": [_rule(finding) for finding in findings],
            }
        },
        "invocations": [_invocation(report)],
        "results": [
            _result(number, finding, config.line(finding, report), config.path, accepted)
            for number, finding in enumerate(findings)
        ],
    }
    return json.dumps({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}, indent=1, ensure_ascii=False) + "\n"


def _rule(finding: Json) -> Json:
    remedies = [
        f"{remedy['title']}: {assignments(remedy['config_patch']) or 'not by the configuration'}"
        for remedy in finding["remedies"]
    ]
    return {
        "id": finding["code"],
        "name": finding["name"],
        "shortDescription": {"text": finding["summary"]},
        "help": {"text": "\n".join(remedies) or finding["summary"]},
        "defaultConfiguration": {"level": _LEVELS[finding["severity"]]},
        "properties": {"tags": [finding["family"], finding["kind"]]},
    }


def _result(number: int, finding: Json, line: int, path: str, accepted: Mapping[str, str]) -> Json:
    reason = accepted.get(finding["fingerprint"])
    named = [(place["name"], place["kind"]) for place in finding["where"] if place["name"]]
    result: Json = {
        "ruleId": finding["code"],
        "ruleIndex": number,
        "level": _LEVELS[finding["severity"]],
        "message": {"text": finding["message"]},
        "locations": [
            {
                "physicalLocation": {
                    "artifactLocation": {"uri": _uri(path)},
                    "region": {"startLine": line},
                },
                "logicalLocations": [{"name": name, "kind": kind} for name, kind in dict.fromkeys(named)],
            }
        ],
        "partialFingerprints": {"trainscope/v1": finding["fingerprint"]},
        "properties": {"firstStep": finding["first_step"], "lastStep": finding["last_step"]},
    }
    if reason is not None:
        result["suppressions"] = [{"kind": "external", "status": "accepted", "justification": reason}]
    return result


def _invocation(report: Json) -> Json:
    crashed = [rule for rule in report["rules"] if rule["outcome"] == "crashed"]
    return {
        "executionSuccessful": not crashed,
        "toolExecutionNotifications": [
            {"level": "error", "message": {"text": f"{rule['code']}: {rule['reason']}"}} for rule in crashed
        ],
    }


def _uri(path: str) -> str:
    return Path(path).as_uri() if Path(path).is_absolute() else quote(path)
