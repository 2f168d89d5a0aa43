"""A report for GitHub Actions: annotations at lines of cfg.toml, and a summary of the job.

After "Workflow commands for GitHub Actions" (docs.github.com), with the escapes of its toolkit. Must not know the run
log.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from typing import Any

from trainscope.report.anchors import ConfigFile
from trainscope.report.diff import config_diff
from trainscope.report.story import tell

Json = dict[str, Any]
_COMMANDS = {"error": "error", "warning": "warning", "info": "notice"}
_MARKS = {"error": "❌", "warning": "⚠️", "info": "ℹ️"}


def commands(report: Json, config: ConfigFile, *, accepted: Mapping[str, str]) -> str:
    """An annotation, one a line, for each finding that was not accepted."""
    return "".join(
        annotation(
            _COMMANDS[finding["severity"]],
            finding["message"],
            file=config.path,
            line=str(config.line(finding, report)),
            title=f"{finding['code']} {finding['summary']}",
        )
        for finding in report["findings"]
        if finding["fingerprint"] not in accepted
    )


def annotation(command: str, message: str, **properties: str) -> str:
    """A line that GitHub shows as an error, a warning or a notice."""
    told = ",".join(f"{name}={_data(text, of_property=True)}" for name, text in properties.items())
    return f"::{command} {told}::{_data(message)}\n"


def summary(report: Json, *, accepted: Mapping[str, str]) -> str:
    """Markdown: the verdict, each diagnosis with what to change, and what was accepted."""
    story = tell(report)
    lines = [f"### trainscope: {markdown(story.verdict)}", ""]
    if story.headline:
        lines += [markdown(" · ".join(story.headline)), ""]
    for card in [*story.cards, *story.others]:
        lines += [f"#### {_MARKS[card.severity]} {markdown(card.title)}", ""]
        for finding in card.findings:
            let_pass = " (accepted)" if finding["fingerprint"] in accepted else ""
            lines.append(f"- `{finding['code']}`{let_pass} {markdown(finding['message'])}")
        for action in card.remedies[:1]:
            diff = config_diff(report.get("config", ""), action.remedy["config_patch"])
            lines += ["", f"**Do:** {markdown(action.remedy['title'])}"]
            if diff:
                fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", diff)), default=0))
                lines += ["", f"{fence}diff", diff, fence]
        lines.append("")
    for finding in report["findings"]:
        if finding["fingerprint"] in accepted:
            lines.append(f"Accepted: `{finding['code']}`, {markdown(accepted[finding['fingerprint']])}")
    return "\n".join(lines).rstrip() + "\n"


def _data(text: str, *, of_property: bool = False) -> str:
    plain = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    return plain.replace(":", "%3A").replace(",", "%2C") if of_property else plain


def markdown(text: str) -> str:
    """As text: neither HTML nor Markdown of a run's names is interpreted."""
    return re.sub(r"([\\`*_{}\[\]()#|~])", r"\\\1", html.escape(" ".join(text.split()), quote=False))
