"""The report on one screen of a terminal: the verdict, each diagnosis with its remedy, and what could not be seen.

Every text of the report is data: no markup in it is interpreted and no control character reaches the terminal. Must
not know HTML or the run log.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from trainscope.report import wording
from trainscope.report.diff import assignments
from trainscope.report.story import Action, Card, Cause, Json, Story, evidence, tell

_TONES = {"error": "red", "warning": "yellow", "info": "blue", "clear": "green", "unknown": "magenta"}
_MARKS = {"error": "✕", "warning": "!", "info": "i", "clear": "✓", "unknown": "?"}
_ASCII_MARKS = {"error": "x", "warning": "!", "info": "i", "clear": "ok", "unknown": "?"}
_PLAINER = str.maketrans(
    {"→": "->", "·": "|", "–": "-", "“": '"', "”": '"', "∞": "inf", "×": "x", "θ": "theta", "Δ": "delta"}
)
_BAR = 10
_SHOWN_REASONS = 4
_SHOWN_CODES = 6


def print_report(report: dict[str, Any], console: Console, *, run_dir: Path) -> None:
    """Print the story of a report: about forty lines for one diagnosis."""
    story = tell(report)
    out = _Printer(console, fixable=bool(report.get("config")))
    out.verdict(story)
    for number, card in enumerate([*story.cards, *story.others], 1):
        out.card(card, number if len(story.cards) + len(story.others) > 1 else None, run_dir)
    out.outcomes(story)
    out.place(run_dir)


class _Printer:
    def __init__(self, console: Console, *, fixable: bool) -> None:
        """`fixable`: there is a cfg.toml that remedies can be applied to."""
        self._console = console
        self._fixable = fixable
        self._ascii = console.options.ascii_only

    def verdict(self, story: Story) -> None:
        mark = (_ASCII_MARKS if self._ascii else _MARKS)[story.status]
        tone = f"bold {_TONES[story.status]}"
        self._print(self._text(f"{mark} {story.status_word}: ", tone).append_text(self._text(story.verdict, "bold")))
        if story.headline:
            self._print(self._text(" · ".join(story.headline), "dim"))

    def card(self, card: Card, number: int | None, run_dir: Path) -> None:
        self._print(Text())
        title = self._text(f"{number}. " if number else "", "bold").append_text(self._text(card.title, "bold"))
        self._print(title.append_text(self._text(f"  {card.severity}", _TONES.get(card.severity, ""))))
        rows = Table.grid(padding=(0, 2, 0, 0))
        rows.add_column(no_wrap=True, style="dim", min_width=4)
        rows.add_column(ratio=1)
        self._rows(rows, "seen", [self._finding(finding) for finding in card.symptoms])
        self._rows(rows, "how", [self._finding(finding) for finding in card.mechanisms])
        why = "risk" if card.causes and card.causes[0].finding["kind"] == "risk" else "why"
        self._rows(rows, why, [self._cause(cause, first=index == 0) for index, cause in enumerate(card.causes[:3])])
        if card.remedies:
            self._rows(rows, "do", [self._remedy(card.remedies[0], run_dir)])
            self._rows(rows, "or", [self._alternative(action) for action in card.remedies[1:3]])
        self._rows(rows, "not", [self._refuted(advice) for advice in card.refuted[:2]])
        self._print(Padding(rows, (0, 0, 0, 2), expand=False))

    def outcomes(self, story: Story) -> None:
        self._print(Text())
        counts = [f"{count} {outcome.replace('_', ' ')}" for outcome, count in story.counts.items() if count]
        self._print(self._text("Rules: ", "bold").append_text(self._text(" · ".join(counts) or "none")))
        for rule in story.by_outcome["crashed"]:
            self._print(self._text(f"  {rule['code']} crashed: {rule['reason']}", "red"))
        if not story.not_observable:
            return
        self._print(self._text("Not observable:", "bold"))
        rows = Table.grid(padding=(0, 2, 0, 0))
        rows.add_column(max_width=max(16, self._console.width // 3))
        rows.add_column(ratio=1, style="dim")
        for reason, rules in story.not_observable[:_SHOWN_REASONS]:
            codes = [rule["code"] for rule in rules[:_SHOWN_CODES]]
            more = len(rules) - len(codes)
            rows.add_row(self._text(" ".join(codes) + (f" and {more} more" if more else "")), self._text(reason))
        self._print(Padding(rows, (0, 0, 0, 2), expand=False))
        left = sum(len(rules) for _, rules in story.not_observable[_SHOWN_REASONS:])
        if left:
            self._print(self._text(f"  and {wording.counted(left, 'rule')} more, in the report", "dim"))

    def place(self, run_dir: Path) -> None:
        file = run_dir / "report.html"
        if file.is_file():
            self._print(Text())
            self._print(self._text("Report: ", "bold").append_text(self._text(str(file))), soft_wrap=True)

    def _finding(self, finding: Json) -> Text:
        return self._text(f"{finding['code']} ", "cyan").append_text(self._text(finding["message"]))

    def _cause(self, cause: Cause, *, first: bool) -> RenderableType:
        filled = round(_BAR * wording.share(cause.score))
        full, empty = ("#", ".") if self._ascii else ("█", "░")
        line = self._text(full * filled, "red" if first else "").append_text(self._text(empty * (_BAR - filled), "dim"))
        line.append_text(self._text(f" {wording.percent(cause.score):>5}  ", "bold" if first else ""))
        line.append_text(self._text(f"{cause.finding['code']} ", "cyan"))
        line.append_text(self._text(cause.finding["summary"], "bold" if first else ""))
        if not first:
            return line
        lines = [line, self._text(cause.finding["message"])]
        numbers = "  ".join(f"{name} {value}" for name, value in evidence(cause.finding) if name != "when")
        return Group(*lines, self._text(numbers, "dim")) if numbers else Group(*lines)

    def _remedy(self, action: Action, run_dir: Path) -> Group:
        remedy = action.remedy
        lines = [self._text(remedy["title"], "bold")]
        patch = assignments(remedy["config_patch"])
        lines += [self._text(f"    {line}", "green") for line in patch.splitlines()]
        if remedy["proof"]:
            lines.append(self._text(f"Proven: {wording.proof_sentence(remedy['proof'])}"))
        if remedy["cost"]:
            lines.append(self._text(f"Cost: {remedy['cost']}"))
        if patch and self._fixable:
            command = f"trainscope fix {shlex.quote(str(run_dir))}"
            lines.append(self._text(command, "bold").append_text(self._text(" writes the corrected cfg.toml")))
        return Group(*lines)

    def _alternative(self, action: Action) -> Text:
        patch = ", ".join(assignments(action.remedy["config_patch"]).splitlines())
        line = self._text(action.remedy["title"])
        if patch:
            line.append_text(self._text(": ")).append_text(self._text(patch, "green"))
        return line.append_text(self._text(" (proven)" if action.remedy["proof"] else " (not yet proven)", "dim"))

    def _refuted(self, advice: Json) -> Text:
        proof = advice["proof"]
        measured = f": {wording.proof_sentence(proof)}" if proof else ""
        return self._text(f"“{advice['advice']}” was tried and does not help{measured}")

    def _rows(self, rows: Table, label: str, cells: list[Any]) -> None:
        for index, cell in enumerate(cells):
            rows.add_row(Text("" if index else label), cell)

    def _text(self, text: str, style: str = "") -> Text:
        plain = wording.clean(text).replace("\n", " ").replace("\t", " ")
        try:
            plain.encode(self._console.encoding)
        except UnicodeEncodeError:
            plain = plain.translate(_PLAINER).encode(self._console.encoding, "replace").decode(self._console.encoding)
        return Text(plain, style)

    def _print(self, what: RenderableType, *, soft_wrap: bool = False) -> None:
        self._console.print(what, soft_wrap=soft_wrap, highlight=False, markup=False, emoji=False)
