import pytest

from trainscope.report.gauge import MARGIN, MOST_DOTS, gauge


def finding(value, threshold, *places):
    return {"value": value, "threshold": threshold, "where": [{"value": each} for each in places]}


def test_a_value_above_the_threshold():
    line = gauge(finding(0.8, 0.2, 0.8, 0.4))
    assert not line.log
    assert line.value == 100 - MARGIN
    assert line.threshold == pytest.approx(MARGIN + 0.25 * (100 - 2 * MARGIN)), "the line begins at 0"
    assert line.dots == [line.value, pytest.approx(MARGIN + 0.5 * (100 - 2 * MARGIN))]
    assert (line.bad_from, line.bad_to) == (line.threshold, 100)


def test_a_value_far_below_the_threshold_is_seen_on_a_logarithmic_line():
    line = gauge(finding(1e-9, 1e-5, 1e-9, 1e-7))
    assert line.log
    assert (line.value, line.threshold) == (MARGIN, 100 - MARGIN)
    assert line.dots[1] == pytest.approx(50)
    assert (line.bad_from, line.bad_to) == (0, line.threshold)


def test_negative_values_and_zeros():
    line = gauge(finding(-2.0, 0.5, None, "NaN"))
    assert (line.value, line.threshold, line.dots, line.log) == (MARGIN, 100 - MARGIN, [], False)
    line = gauge(finding(-2.0, -1.0))
    assert line.threshold == pytest.approx(50), "the line ends at 0"
    assert not gauge(finding(0.0, 1e-9)).log


@pytest.mark.parametrize(
    ("value", "threshold"), [(None, 1.0), (1.0, None), ("NaN", 1.0), (1.0, "Infinity"), (0.0, 0.0)]
)
def test_where_there_is_no_side_there_is_no_line(value, threshold):
    assert gauge(finding(value, threshold)) is None


def test_every_value_is_on_the_line_and_not_too_many():
    line = gauge(finding(1e-300, 1e300, *[10.0**power for power in range(100)]))
    assert len(line.dots) == MOST_DOTS
    assert all(MARGIN <= at <= 100 - MARGIN for at in line.dots)
