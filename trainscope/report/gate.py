"""A gate's result on the console: the verdict, what failed and since when, and the smallest change that would have.

Works on the plain values of the result; every text of it is data. Must not know how a gate decides.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from trainscope.report import wording

Json = dict[str, Any]

_TONES = {"pass": "green", "fail": "red", "missing": "yellow", "not comparable": "dim"}
_MARKS = {"pass": "✓", "fail": "✕", "missing": "?", "not comparable": "–"}
_ASCII_MARKS = {"pass": "ok", "fail": "x", "missing": "?", "not comparable": "-"}
_PLAINER = str.maketrans({"→": "->", "±": "+-", "×": "x", "–": "-", "·": "|", "…": "..."})
_SHOWN_KEYS = 8
_SHOWN_DETAILS = 6
_EQUAL = {"findings": "none new", "setup": "the same"}
EXACT = "equal or not"
"""The method of measures without numbers."""
_UNITS = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def print_gate(result: Json, console: Console) -> None:
    """Print the result: failures and what may have caused them in full, the rest as a table."""
    out = _Printer(console)
    out.verdict(result)
    if result["verdict"] == "fail":
        out.changed(result["changed"])
    for one in result["comparisons"]:
        if one["outcome"] == "fail":
            out.failure(one)
    out.table([one for one in result["comparisons"] if one["outcome"] == "pass"], len(result["baselines"]))
    out.unseen([one for one in result["comparisons"] if one["outcome"] in ("missing", "not comparable")])
    out.ending(result)


class _Printer:
    def __init__(self, console: Console) -> None:
        self._console = console
        self._ascii = console.options.ascii_only

    def verdict(self, result: Json) -> None:
        verdict = result["verdict"]
        mark = (_ASCII_MARKS if self._ascii else _MARKS)[verdict]
        word = {"pass": "passed", "fail": "failed"}[verdict]
        self._print(
            self._text(f"{mark} {word}: ", f"bold {_TONES[verdict]}").append_text(self._text(result["summary"], "bold"))
        )
        sources = Counter(run["source"] or run["name"] for run in result["baselines"])
        names = [f"{source} ({count} runs)" if count > 1 else source for source, count in sources.items()]
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        candidate = result["candidate"]["source"] or result["candidate"]["name"]
        self._print(self._text(f"{candidate} against {', '.join(names[:4])}{more}", "dim"))
        for note in result["notes"]:
            self._print(self._text(f"note: {note}", "yellow"))

    def failure(self, one: Json) -> None:
        self._print(Text())
        self._print(self._text(label(one), "bold red").append_text(self._text(f"  {one['title']}", "bold")))
        since = f", from step {one['parts_at']} on" if one["parts_at"] is not None else ""
        if one["method"] == EXACT:
            lines = one["details"][:_SHOWN_DETAILS]
            left = len(one["details"]) - _SHOWN_DETAILS
            lines += [f"and {left} more"] if left > 0 else []
            lines[-1] += since
        else:
            both = f"{values(one['baseline'], one['unit'])} → {value(one['candidate'], one['unit'])}"
            lines = [f"{both}{since}", f"allowed is {allowed(one)}: {one['reason']}"]
        for line in lines:
            self._print(Padding(self._text(line), (0, 0, 0, 2), expand=False))

    def changed(self, keys: list[Json]) -> None:
        if not keys:
            return
        self._print(Text())
        self._print(self._text("Keys of the configuration that differ", "bold"))
        for key in keys[:_SHOWN_KEYS]:
            line = f"{key['key']}: {_setting(key['baseline'])} → {_setting(key['candidate'])}"
            self._print(Padding(self._text(line), (0, 0, 0, 2), expand=False))
        if len(keys) > _SHOWN_KEYS:
            self._print(self._text(f"  and {len(keys) - _SHOWN_KEYS} more", "dim"))

    def table(self, rows: list[Json], baselines: int) -> None:
        if not rows:
            return
        self._print(Text())
        grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        baseline = "baseline" if baselines == 1 else "baselines"
        for name in ("", "passed", baseline, "candidate", "allowed", "detectable"):
            grid.add_column(self._text(name, "dim"), no_wrap=True)
        for one in rows:
            mark = self._text((_ASCII_MARKS if self._ascii else _MARKS)[one["outcome"]], _TONES[one["outcome"]])
            cells = (
                ("", _EQUAL.get(one["name"], "none"), "", "any")
                if one["method"] == EXACT
                else (
                    value(_mean(one["baseline"]), one["unit"]),
                    value(one["candidate"], one["unit"]),
                    allowed(one),
                    smallest(one),
                )
            )
            grid.add_row(mark, self._text(label(one)), *(self._text(cell) for cell in cells))
        self._print(grid)

    def unseen(self, rows: list[Json]) -> None:
        for outcome, title in (("missing", "Missing:"), ("not comparable", "Not compared:")):
            chosen = [one for one in rows if one["outcome"] == outcome]
            if not chosen:
                continue
            self._print(Text())
            self._print(self._text(title, "bold"))
            for one in chosen:
                line = self._text(f"{label(one)}: ", _TONES[outcome]).append_text(self._text(one["reason"], "dim"))
                self._print(Padding(line, (0, 0, 0, 2), expand=False))

    def ending(self, result: Json) -> None:
        self._print(Text())
        count = len(result["baselines"])
        how = (
            f"{count} baselines: what fails lies outside the prediction interval of their spread."
            if count > 1
            else "One baseline: what fails differs by more than the documented floors and the runs' own noise. Several "
            "baselines, of other seeds, tell smaller changes."
        )
        detectable = "Detectable: the smallest change that would have failed."
        self._print(self._text(f"{how} {detectable} Compared up to step {result['last_step']}.", "dim"))
        for crashed in result["crashed"]:
            self._print(self._text(f"a rule crashed: {crashed}", "red"))

    def _text(self, text: str, style: str = "") -> Text:
        plain = wording.clean(text).replace("\n", " ").replace("\t", " ")
        try:
            plain.encode(self._console.encoding)
        except UnicodeEncodeError:
            plain = plain.translate(_PLAINER).encode(self._console.encoding, "replace").decode(self._console.encoding)
        return Text(plain, style)

    def _print(self, what: Any) -> None:
        self._console.print(what, highlight=False, markup=False, emoji=False)


def label(one: Json) -> str:
    """Name a measure with its place: `loss, low noise`."""
    return f"{one['name']}, {one['where']}" if one["where"] else str(one["name"])


def value(number: Any, unit: str) -> str:
    """Write a value in its unit."""
    found = wording.number(number)
    if found is None:
        return wording.brief(number)
    if unit == "bytes":
        factor, name = next(((each, name) for each, name in _UNITS if abs(found) >= each), (1, "B"))
        return f"{found / factor:.3g} {name}"
    if unit == "s":
        return f"{found * 1000:.3g} ms" if abs(found) < 1 else f"{found:.3g} s"
    if found and abs(found) < 1e-3:
        return wording.brief(found)
    return f"{found:.4g}"


def values(numbers: list[Any], unit: str) -> str:
    """Write the baselines' values: one, or from the lowest to the highest."""
    if not numbers:
        return wording.NONE
    finite = [found for number in numbers if (found := wording.number(number)) is not None]
    if len(finite) < len(numbers):
        return value(numbers[0], unit)
    low, high = value(min(finite), unit), value(max(finite), unit)
    return low if low == high else _range(low, high)


def allowed(one: Json) -> str:
    """Write which values pass."""
    low, high = one["allowed"]
    if low is None and high is None:
        return "any"
    if low is None:
        return f"up to {value(high, one['unit'])}"
    if high is None:
        return f"from {value(low, one['unit'])}"
    return _range(value(low, one["unit"]), value(high, one["unit"]))


def _range(low: str, high: str) -> str:
    return f"{low} to {high}" if low.startswith("-") or high.startswith("-") else f"{low}–{high}"


def smallest(one: Json) -> str:
    """Write the smallest change that would have failed: `±12 %`, `+0.04`, `×3`."""
    change = wording.number(one["smallest_change"])
    if change is None:
        return wording.NONE
    low, high = one["allowed"]
    sign = "+" if low is None else "-" if high is None else "±"
    if not one["relative"]:
        return f"{sign}{value(change, one['unit'])}"
    if change >= 1:
        return f"×{1 + change:.2g}" + (f", ÷{1 + change:.2g}" if sign == "±" else "")
    return f"{sign}{100 * change:.2g} %"


def _mean(numbers: list[Any]) -> Any:
    found = [wording.number(number) for number in numbers]
    known = [number for number in found if number is not None]
    return sum(known) / len(known) if known and len(known) == len(found) else numbers[0]


def _setting(found: Any) -> str:
    return wording.brief(found) if found is not None else "not set"
