"""A comparison on the console: the runs, their configuration first, then findings and numbers, a column a run.

Works on the plain values of the comparison; every text of it is data. Must not know how runs are compared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from trainscope.report import wording
from trainscope.report.compare_words import (
    OUTCOMES,
    earlier_text,
    finding_counts,
    number_groups,
    number_text,
    run_state,
    setting_text,
    shared_findings,
    unseen,
    unusual,
    worst,
)

Json = dict[str, Any]

_TONES = {"error": "red", "warning": "yellow", "info": "blue", "": "green"}
_PLAINER = str.maketrans({"→": "->", "–": "-", "·": "|", "×": "x", "∞": "inf", "“": '"', "”": '"'})
_FIRST_WIDTH = 34
"""Of a table's first column, at most."""


def print_comparison(comparison: Json, console: Console) -> None:
    """Print what differs, first of all in the configuration."""
    out = _Printer(comparison, console)
    out.verdict()
    out.runs()
    out.config()
    out.findings()
    out.numbers()


class _Printer:
    def __init__(self, comparison: Json, console: Console) -> None:
        self._of = comparison
        self._console = console
        labels = [run["label"] for run in comparison["runs"]]
        self._numbered = _FIRST_WIDTH + sum(max(len(label), 8) + 2 for label in labels) > console.width
        self._heads = [f"[{number}]" for number in range(1, len(labels) + 1)] if self._numbered else labels

    def verdict(self) -> None:
        self._print(self._text(self._of["summary"], "bold"))
        for note in self._of["notes"]:
            self._print(self._text(f"note: {note}", "yellow"))
        for crashed in self._of["crashed"]:
            self._print(self._text(f"a rule crashed: {crashed}", "red"))

    def runs(self) -> None:
        self._print(Text())
        rows = Table.grid(padding=(0, 2, 0, 0))
        for head, run in zip(self._heads, self._of["runs"], strict=True):
            found = self._text(finding_counts(run), _TONES[worst(run)])
            if run["headline"]:
                found.append_text(self._text(f": {run['headline']}", "dim"))
            if unseen(run):
                found.append_text(self._text(f"; {unseen(run)}", "dim"))
            cells = [self._text(run["label"], "bold"), self._text(run_state(run)), found]
            rows.add_row(*([self._text(head, "dim"), *cells] if self._numbered else cells))
        self._print(rows)

    def config(self) -> None:
        of = self._of
        equal = of["config"]["equal"]
        self._heading("Configuration", f"{wording.counted(equal, 'key')} {'is' if equal == 1 else 'are'} the same")
        self._settings(of["config"]["differing"], "no key differs that somebody set")
        if more := of["implied"]["differing"]:
            self._settings([row for row in more if row["key"].startswith("plan.")], "")
            left = [row["key"] for row in more if not row["key"].startswith("plan.")]
            if left:
                self._print(self._text(f"  by default also: {', '.join(left)}", "dim"))
        if of["observed"]["differing"]:
            self._heading("What the log shows of the training")
            self._settings(of["observed"]["differing"], "")
        if of["environment"]["differing"]:
            self._heading("Versions and machine")
            self._settings(of["environment"]["differing"], "")

    def _settings(self, rows: Sequence[Json], nothing: str) -> None:
        if not rows:
            if nothing:
                self._print(self._text(f"  {nothing}", "dim"))
            return
        self._beside([(self._text(row["key"]), self._settings_of(row["settings"])) for row in rows])

    def _settings_of(self, settings: Sequence[Json]) -> list[Text]:
        return [self._setting(settings, setting) for setting in settings]

    def _setting(self, settings: Sequence[Json], setting: Json) -> Text:
        dim = setting["known"] != "yes" or setting["value"] is None
        text = self._text(setting_text(setting), "dim" if dim else "bold" if unusual(settings, setting) else "")
        for past in setting["earlier"]:
            text.append_text(self._text(f" ({earlier_text(past)})", "dim"))
        return text

    def findings(self) -> None:
        rows = self._of["findings"]
        self._heading("Findings", shared_findings(self._of) if rows else "none in any run")
        if not rows:
            return
        named = [self._text(f"{row['code']} ", "cyan").append_text(self._text(row["summary"])) for row in rows]
        cells = [[self._finding(row, cell) for cell in row["cells"]] for row in rows]
        self._beside(list(zip(named, cells, strict=True)))

    def _finding(self, row: Json, cell: Json) -> Text:
        if cell["outcome"] != "fired":
            return self._text(OUTCOMES[cell["outcome"]], "dim")
        text = self._text(row["severity"], _TONES[row["severity"]])
        if cell["first_step"] is not None:
            text.append_text(self._text(f" from step {wording.brief(cell['first_step'])}", "dim"))
        return text

    def numbers(self) -> None:
        for group, rows in number_groups(self._of):
            self._heading(group)
            self._beside([(self._text(row["title"]), list(self._numbers(row))) for row in rows])

    def _numbers(self, row: Json) -> Iterable[Text]:
        usual = Counter(cell["step"] for cell in row["values"] if cell["value"] is not None).most_common(1)[0][0]
        for index, cell in enumerate(row["values"]):
            text = self._text(number_text(cell["value"], row["unit"]), "bold green" if index == row["best"] else "")
            if cell["step"] not in (None, usual) and not self._numbered:
                text.append_text(self._text(f" (step {wording.brief(cell['step'])})", "dim"))
            yield text

    def _beside(self, rows: Sequence[tuple[Text, list[Text]]]) -> None:
        """Print a table where there is room for one, else each row as `key: value [1] [2], other value [3]`."""
        columns = zip(*(cells for _, cells in rows), strict=True)
        width = sum(max(len(head), *map(len, cells)) + 2 for head, cells in zip(self._heads, columns, strict=True))
        first = min(_FIRST_WIDTH // 2, max(len(name) for name, _ in rows))
        if not self._numbered or first + width + 4 <= self._console.width:
            self._table(rows)
            return
        for name, cells in rows:
            found: dict[str, list[int]] = {}
            for index, cell in enumerate(cells):
                if cell.plain != wording.NONE:
                    found.setdefault(cell.plain, []).append(index)
            parts = [
                cells[own[0]] + Text(f" {' '.join(self._heads[index] for index in own)}", "dim")
                for own in found.values()
            ]
            self._print(Padding(Text.assemble(name, ": ", Text(", ").join(parts)), (0, 0, 0, 2), expand=False))

    def _table(self, rows: Sequence[tuple[Text, list[Text]]]) -> None:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        widest = max(len(name) for name, _ in rows)
        table.add_column(min_width=min(widest, _FIRST_WIDTH // 2), max_width=_FIRST_WIDTH)
        for head in self._heads:
            table.add_column(self._text(head, "dim"), overflow="fold")
        for name, cells in rows:
            table.add_row(name, *cells)
        self._print(Padding(table, (0, 0, 0, 2), expand=False))

    def _heading(self, title: str, more: str = "") -> None:
        self._print(Text())
        self._print(self._text(title, "bold").append_text(self._text(f"  {more}" if more else "", "dim")))

    def _text(self, text: str, style: str = "") -> Text:
        plain = wording.clean(text).replace("\n", " ").replace("\t", " ")
        try:
            plain.encode(self._console.encoding)
        except UnicodeEncodeError:
            plain = plain.translate(_PLAINER).encode(self._console.encoding, "replace").decode(self._console.encoding)
        return Text(plain, style)

    def _print(self, what: Any) -> None:
        self._console.print(what, highlight=False, markup=False, emoji=False)
