import io

import pytest
from rich.console import Console

from trainscope.report.console import print_report
from trainscope.schema import to_json


def printed(report, tmp_path, *, width=100, **options):
    file = io.StringIO()
    print_report(report, Console(file=file, width=width, **options), run_dir=tmp_path)
    return file.getvalue()


def test_the_story_fits_one_screen(s0, tmp_path):
    (tmp_path / "report.html").touch()
    text = printed(s0, tmp_path)
    lines = [line.rstrip() for line in text.splitlines()]
    assert len(lines) <= 40
    assert max(len(line) for line in lines if str(tmp_path) not in line) <= 100
    for part in (
        "✕ Error: The model did not move: its bf16 weights round every update away.",
        "██████████  98 %  PREC001 bf16 weights round the updates away",
        "████░░░░░░  45 %  PRO003",
        '    precision.weights = "fp32"',
        "Proven: held-out loss ended at 0.19 instead of 1.12 (healthy run: 0.19); the rule said clear",
        "“lower the lr to 0.01” was tried and does not help: held-out loss ended at 1.12,",
        "Rules: 5 fired · 17 clear · 4 not applicable · 4 not observable",
        "EMA001 EMA004  ema.delivered was not recorded",
        f"Report: {tmp_path / 'report.html'}",
    ):
        assert part in text
    assert "trainscope fix" in text


def test_nothing_but_text_reaches_a_file(s0, tmp_path):
    assert "\x1b" not in printed(s0, tmp_path)
    assert "\x1b[" in printed(s0, tmp_path, force_terminal=True)


def test_markup_and_escapes_in_the_data_are_text(s0, tmp_path):
    evil = "[red]x[/red] [link=https://a.org]y :smile:[/nope] \x1b[31m\x9b1m\x07"
    s0["verdict"] = evil
    for finding in s0["findings"]:
        finding.update(message=evil, summary=evil, name=evil, evidence={evil: evil})
    s0["diagnoses"][0]["title"] = evil
    s0["diagnoses"][0]["remedies"][0].update(title=evil, cost=evil, config_patch={evil: evil})
    s0["rules"][-1]["reason"] = evil
    text = printed(s0, tmp_path, width=300)
    assert "[red]x[/red] [link=https://a.org]y :smile:[/nope] \ufffd[31m\ufffd1m\ufffd" in text
    assert not set("\x1b\x9b\x07") & set(text)


def test_a_terminal_without_unicode_gets_ascii(s0, tmp_path):
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    s0["diagnoses"][0]["title"] = "Das Modell rührte sich nicht"
    print_report(s0, Console(file=file, width=100), run_dir=tmp_path)
    file.flush()
    text = file.buffer.getvalue().decode()
    assert "x Error: The model" in text
    assert "##########  98 %" in text
    assert "instead of 1.12 (healthy run: 0.19)" in text
    assert "r?hrte" in text


@pytest.mark.parametrize("width", [20, 40, 80])
def test_narrow_terminals(s0, tmp_path, width):
    assert max(len(line.rstrip()) for line in printed(s0, tmp_path, width=width).splitlines()) <= width


def test_a_clean_run_is_three_lines_and_the_counts(reports, tmp_path):
    text = printed(to_json(reports.clean_report()), tmp_path)
    assert text.startswith("✓ Clear: Nothing found: 17 rules looked")
    assert "Rules: 17 clear · 4 not applicable" in text
    assert "Not observable" not in text


def test_many_rules_that_could_not_look_are_cut(reports, tmp_path):
    report = to_json(reports.unobservable_report())
    for number in range(10):
        report["rules"].append(
            {
                "code": f"X{number}",
                "name": "x",
                "outcome": "not_observable",
                "reason": f"reason {number}",
                "seconds": 0.0,
            }
        )
    text = printed(report, tmp_path)
    assert "and 11 more" in text
    assert "and 10 rules more, in the report" in text


def test_crashed_rules_are_named(s0, tmp_path):
    s0["rules"][-1].update(outcome="crashed", reason="out of memory")
    assert "MEM001 crashed: out of memory" in printed(s0, tmp_path)
