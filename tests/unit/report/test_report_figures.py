import math

from trainscope.engine.series import downsample
from trainscope.report.figures import MAX_LINES, MAX_MODULES, MAX_POINTS, curve, heat_map


def series(lines, *, log=False, unit=""):
    return {
        "name": "s",
        "title": "S",
        "unit": unit,
        "log_scale": log,
        "lines": {name: {"step": list(range(1, len(values) + 1)), "value": values} for name, values in lines.items()},
    }


def test_thinning_keeps_spikes_ends_and_order():
    values = [math.sin(step / 500) for step in range(20_000)]
    values[7_777], values[3_333] = 99.0, -99.0
    line = curve(series({"a": values}), "f").spec["lines"][0]
    assert len(line["x"]) <= MAX_POINTS + 2
    assert {99.0, -99.0} <= set(line["y"])
    assert (line["x"][0], line["x"][-1]) == (1, 20_000)
    assert line["x"] == sorted(line["x"])


def test_non_finite_values_are_counted_not_dropped():
    figure = curve(series({"a": [1.0, "NaN", "Infinity", None, 2.0]}), "f")
    line = figure.spec["lines"][0]
    assert line["y"] == [1.0, None, None, None, 2.0]
    assert line["bad"] == [2, 3]
    assert figure.caption == "Steps 1–5: 1 → 2, 2 non-finite values."


def test_zeros_on_a_logarithmic_scale_are_marked():
    line = curve(series({"a": [0.0, 1e-6, 1e-3]}, log=True), "f").spec["lines"][0]
    assert line["zero"] == [1]
    assert not curve(series({"a": [0.0, 0.0]}, log=True), "f").spec["log"]


def test_the_caption_says_what_the_curves_show():
    lines = {"raw": [1.12, 1.3, 0.19], "ema": [1.12, 1.0, 0.21]}
    figure = curve(series(lines), "f", thresholds=[(0.5, "SYM002")], places=[(1, None, "A"), (2, 2, "B"), (1, 3, "C")])
    assert figure.caption == "Steps 1–3: raw 1.12 → 0.19 (between 0.19 and 1.3), ema 1.12 → 0.21. Threshold 0.5."
    assert figure.spec["thresholds"] == [{"value": 0.5, "label": "threshold 0.5 · SYM002"}]
    assert figure.spec["places"] == [
        {"step": 1, "last": 1, "whole": False, "label": "A: step 1"},
        {"step": 2, "last": 2, "whole": False, "label": "B: step 2"},
        {"step": 1, "last": 3, "whole": True, "label": "C: whole run"},
    ]


def test_empty_and_odd_series_do_not_crash():
    assert curve(series({}), "f").caption == "Nothing recorded."
    assert curve(series({"a": []}), "f").caption == "Nothing recorded."
    assert curve(series({"a": ["x", None]}), "f").spec["lines"][0]["bad"] == [1]
    odd = series({})
    odd["lines"] = {"a": {"step": [1, "NaN", 3]}, "b": {}}
    assert curve(odd, "f").spec["lines"][0]["x"] == []


def test_many_lines_are_cut_and_said():
    figure = curve(series({f"l{i}": [1.0] for i in range(30)}), "f")
    assert len(figure.spec["lines"]) == MAX_LINES
    assert "26 more lines, 12 drawn" in figure.caption


def test_a_map_is_thinned_its_gaps_kept():
    measure = {
        "name": "m",
        "title": "M",
        "unit": "",
        "modules": [f"m{i}" for i in range(1000)],
        "steps": [1, 2],
        "values": [[None, float(i)] for i in range(999)] + [[]],
    }
    figure = heat_map(measure, "f")
    assert len(figure.spec["modules"]) == MAX_MODULES
    assert figure.spec["values"][0] == [None, 0.0]
    assert figure.spec["values"][-1] == [None, None]
    assert figure.caption == "1000 modules × 2 steps, from 0 to 998. Drawn: 240 × 2 of them. Gaps were not recorded."


def test_a_spike_of_one_step_in_ten_thousand_stays_and_the_reduction_is_told():
    """Through both reductions: the engine's for report.json, and the page's."""
    steps = list(range(1, 10_001))
    values = [1.0 + 1e-3 * math.sin(step) for step in steps]
    values[6_180], values[3_141] = 50.0, -7.0
    reduced = downsample(steps, values)
    whole = {"title": "t", "name": "n", "unit": "", "log_scale": False, "recorded": len(steps), "lines": {"a": reduced}}
    figure = curve(whole, "f")
    [line] = figure.spec["lines"]
    assert len(line["x"]) <= MAX_POINTS
    assert (6_181, 50.0) in zip(line["x"], line["y"], strict=True)
    assert (3_142, -7.0) in zip(line["x"], line["y"], strict=True)
    assert (line["x"][0], line["x"][-1]) == (1, 10_000)
    assert f"Reduced from 10,000 steps to {len(line['x'])} points, each span's extremes kept." in figure.caption
    assert (
        "Reduced"
        not in curve({**whole, "lines": {"a": {"step": [1, 2], "value": [1.0, 2.0]}}, "recorded": 0}, "f").caption
    )
