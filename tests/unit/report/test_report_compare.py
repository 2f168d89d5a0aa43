"""A comparison as a page and on the console."""

from __future__ import annotations

import io
import random
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.unit.report.comparison import PROMPTS, SAMPLED, three_runs
from tests.unit.report.fixture import png
from trainscope.report.compare import GENERATOR, look_of, render_comparison
from trainscope.report.compare_console import print_comparison
from trainscope.report.compare_samples import sample_sheets
from trainscope.report.compare_words import (
    earlier_text,
    finding_counts,
    number_text,
    run_state,
    setting_text,
    shared_findings,
    unseen,
    unusual,
)

ROOM = 1_000_000


@pytest.fixture
def plain(tmp_path: Path) -> dict[str, Any]:
    return three_runs(tmp_path)


def printed(comparison: dict[str, Any], *, width: int = 100, encoding: str = "utf-8") -> str:
    buffer = io.BytesIO()
    stream = io.TextIOWrapper(buffer, encoding=encoding, write_through=True)
    print_comparison(comparison, Console(file=stream, width=width, force_terminal=False))
    return buffer.getvalue().decode(encoding)


def test_no_two_runs_look_the_same() -> None:
    looks = [look_of(run) for run in range(12)]
    assert len(set(looks)) == 12
    assert len({(look.dash, look.symbol) for look in looks}) == 12, "nor to who sees no colours"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (5e-5, "5e-5"), (1e-4, "0.0001"), (0.123456789, "0.123457"), (1.0, "1"), (269540.0, "269,540"),
        (3.95e7, "39,500,000"), (True, "yes"),
        (["unet"], '["unet"]'), ('"inf"', "inf"), ("a\nb", "a b"), ("NaN", "NaN"), (None, "not set"),
    ],
)  # fmt: skip
def test_values_stand_as_in_the_file(value: Any, text: str) -> None:
    assert setting_text({"known": "yes", "value": value, "origin": "file"}) == text


def test_values_that_are_not_there_say_why() -> None:
    texts = [setting_text({"known": known, "value": None, "origin": ""}) for known in ("no such key", "not recorded")]
    assert texts == ["–", "not recorded"]
    assert setting_text({"known": "yes", "value": 17.142857, "origin": "derived"}) == "17.1"
    assert earlier_text({"value": None, "until": 60}) == "not set up to step 60"


def test_what_most_runs_have_is_usual() -> None:
    settings = [{"known": "yes", "value": value, "origin": ""} for value in (1, 1, 2)]
    assert [unusual(settings, setting) for setting in settings] == [False, False, True]
    assert not any(unusual(settings[1:], setting) for setting in settings[1:]), "of two neither is"


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (None, "s", "–"), ("NaN", "s", "NaN"), (0.0123, "s", "12.3 ms"), (119.0, "s", "119 s"),
        (125.0, "s", "2 min 5 s"),
        (7384.0, "s", "2 h 3 min"), (2.0**31, "bytes", "2 GiB"), ("Infinity", "bytes", "∞"),
        (12000.0, "steps", "12,000"),
        (0.19806, "", "0.198"),
    ],
)  # fmt: skip
def test_numbers_in_their_units(value: Any, unit: str, text: str) -> None:
    assert number_text(value, unit) == text


def test_runs_in_words(plain: dict[str, Any]) -> None:
    assert [run_state(run) for run in plain["runs"]] == [
        "completed at step 60", "completed at step 60", "running, up to step 40",
    ]  # fmt: skip
    assert [finding_counts(run) for run in plain["runs"]] == ["nothing found", "2 errors, 1 warning", "nothing found"]
    assert [unseen(run) for run in plain["runs"]] == ["", "", "41 rules could not look"]
    assert shared_findings(plain) == "1 only in hot; 1 in all runs"
    plain["findings"][1]["cells"][0]["outcome"] = "clear"
    assert shared_findings(plain) == "1 only in hot; 1 in some of them"


class Page(HTMLParser):
    """The elements of a page, and the text of its tables by rows."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def test_the_page_tells_configuration_first(plain: dict[str, Any]) -> None:
    text = render_comparison(plain)
    body = text[text.index("<body>") : text.index('<script type="application/json"')]
    places = [
        body.index(part) for part in ('id="config"', 'id="findings"', 'id="numbers"', 'id="curves"', 'id="samples"')
    ]
    assert places == sorted(places)
    parts = ("0.001 up to step 30", "104 are the same", "58 of 60 steps had no finite loss", "not recorded", "set B",
             "1 more key that differs", "2 h 3 min", "recorded by exec", "resumed at step 30")  # fmt: skip
    assert [part for part in parts if part not in body] == []
    assert f'<meta name="generator" content="{GENERATOR}">' in text
    assert len(text.encode()) < 10_000_000


def test_the_page_loads_nothing_and_no_text_becomes_markup(plain: dict[str, Any]) -> None:
    evil = '"></script><img src=x onerror=alert(1)><b>\u202e\u2028\0'
    before = [tag for tag, _ in Page(render_comparison(plain)).elements]

    def spoil(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: item if key in ("outcome", "severity", "known", "unit", "path", "panel") else spoil(item)
                    for key, item in value.items()}  # fmt: skip
        if isinstance(value, list):
            return [spoil(item) for item in value]
        return value + evil if isinstance(value, str) and value not in ("", "NaN") else value

    hostile = spoil(plain)
    for overlay, original in zip(hostile["curves"], plain["curves"], strict=True):
        overlay["name"] = original["name"]  # by which its place is chosen
        overlay["lines"] = {f"{label}{evil}": columns for label, columns in overlay["lines"].items()}
    page = Page(render_comparison(hostile))
    assert [tag for tag, _ in page.elements if tag != "wbr"] == [tag for tag in before if tag != "wbr"]
    assert {attributes["src"].partition(":")[0] for attributes in page.named("img") if attributes.get("src")} == {
        "data"
    }
    assert not [attributes for tag, attributes in page.elements if "onerror" in attributes]
    assert {attributes["href"][0] for attributes in page.named("a")} == {"#"}


def test_samples_of_the_same_prompt_stand_under_each_other(plain: dict[str, Any]) -> None:
    (first, second), alone = sample_sheets(plain, ROOM)
    assert (first.prompt, first.steps, [row.run for row in first.rows]) == (PROMPTS[0], SAMPLED, [0, 1, 2])
    shown = [[cell is not None and bool(cell[1].data_uri) for cell in row.cells] for row in first.rows]
    assert shown == [[True] * 7, [True] * 7, [True] * 5 + [False] * 2]
    assert [row.run for row in second.rows] == [0, 1]
    assert alone == 0
    plain["samples"] = [sample for sample in plain["samples"] if sample["run"] == 0 or sample["prompt"] == PROMPTS[0]]
    sheets, alone = sample_sheets(plain, ROOM)
    assert ([sheet.prompt for sheet in sheets], alone) == ([PROMPTS[0]], 1)


def test_twelve_long_runs_with_large_images_stay_below_ten_megabytes(plain: dict[str, Any], tmp_path: Path) -> None:
    noise = random.Random(0)
    first, sample = plain["runs"][0], plain["samples"][0]
    plain["runs"] = [{**first, "label": f"run {number}"} for number in range(12)]
    (tmp_path / "base" / sample["path"]).write_bytes(b"\x89PNG\r\n\x1a\n" + noise.randbytes(400_000))
    plain["samples"] = [{**sample, "run": run, "step": step} for run in range(12) for step in range(10)]
    lines = {
        run["label"]: {
            "run": n,
            "step": list(range(9600, 10_000)),
            "value": [1e-4 * noise.random() for _ in range(400)],
        }
        for n, run in enumerate(plain["runs"])
    }
    overlay = plain["curves"][0]
    plain["curves"] = [{**overlay, "name": f"curve {number}", "lines": lines} for number in range(35)]
    for name in ("config", "implied", "environment", "observed", "findings", "numbers"):
        plain[name] = [] if name in ("findings", "numbers") else {"differing": [], "equal": 1}
    assert len(render_comparison(plain).encode()) < 10_000_000


def test_of_many_steps_the_last_of_each_run_and_shared_ones_are_shown(plain: dict[str, Any]) -> None:
    sample = plain["samples"][0]
    plain["samples"] = [
        {**sample, "run": run, "step": step}
        for run, steps in enumerate((range(0, 1001, 10), range(0, 900, 20), [7]))
        for step in steps
    ]
    (sheet,), _ = sample_sheets(plain, ROOM)
    assert {1000, 880, 7} <= set(sheet.steps)
    assert len(sheet.steps) == 10
    assert all(step % 20 == 0 for step in sheet.steps if step != 7)
    assert sheet.sampled == 102


def test_images_outside_of_a_run_are_refused_and_room_is_shared(plain: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png(9, size=16))
    plain["samples"][0]["path"] = "../secret.png"
    (first, _), _ = sample_sheets(plain, ROOM)
    cell = first.rows[0].cells[0]
    assert cell is not None
    assert (cell[1].data_uri, cell[1].note) == ("", "refused: ../secret.png is outside the run")
    size = len(png(0)) + 100
    (first, second), _ = sample_sheets(plain, 3 * size)
    cells = [cell for sheet in (first, second) for row in sheet.rows for cell in row.cells if cell]
    embedded = {cell[0]["run"] for cell in cells if cell[1].data_uri}
    assert embedded == {0, 1, 2}, "no run takes the room of another"
    assert {cell[1].href for cell in cells} == {""}, "the page does not lie beside the runs"


def test_the_console_tells_configuration_first(plain: dict[str, Any]) -> None:
    text = printed(plain)
    parts = [
        "base has the lowest", "note: watched is running", "base     completed", "Configuration  104 keys are the same",
        "optimizer.lr", "0.0005 (0.001 up to step 30)", "by default also: optimizer.d0", "pictures", "torch",
        "Findings  1 only in hot; 1 in all runs", "SYM004 Loss or gradients", "error from step 3", "Held-out loss",
        "0.7 (step 40)", "2 h 3 min",
    ]  # fmt: skip
    places = [text.index(part) for part in parts]
    assert places == sorted(places)


def test_many_runs_on_a_narrow_console_are_grouped_by_value(plain: dict[str, Any]) -> None:
    text = printed(plain, width=48)
    assert "train.method: finetune [1] [3], lora [2]" in text
    assert max(map(len, text.splitlines())) <= 48
    for number, run in enumerate(plain["runs"], 1):
        assert f"[{number}]  {run['label']}" in text


def test_a_console_without_unicode_and_texts_that_steer_it(plain: dict[str, Any]) -> None:
    plain["runs"][0]["label"] = "\x1b[31mred\x1b[0m [bold]x[/bold]"
    text = printed(plain, encoding="ascii")
    assert "\x1b" not in text
    assert "[bold]x[/bold]" in text


def test_runs_that_differ_in_nothing(plain: dict[str, Any]) -> None:
    for name in ("config", "implied", "environment", "observed"):
        plain[name] = {"differing": [], "equal": 3 if name == "environment" else 0}
    plain.update(findings=[], numbers=[], curves=[], samples=[], notes=[])
    text = printed(plain)
    assert "no key differs that somebody set" in text
    assert "Findings  none in any run" in text
    page = render_comparison(plain)
    for part in ("No key differs that somebody set", "Nothing was found in any of the runs", "The same: 3 facts"):
        assert part in page
    for section in ("numbers", "curves", "samples"):
        assert f'id="{section}"' not in page
        assert f'href="#{section}"' not in page
