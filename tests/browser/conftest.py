"""One browser for all tests of a process, and one report."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser.chromium import Chromium
from tests.unit.report import fixture as reports
from trainscope.report.html import render_html
from trainscope.schema import to_json


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    try:
        started = Chromium(tmp_path_factory.mktemp("chromium"))
    except FileNotFoundError as error:
        pytest.fail(str(error))
    yield started
    started.close()


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a broken, resumed run, with everything that a report can have."""
    run = tmp_path_factory.mktemp("run")
    file = run / "report.html"
    file.write_text(render_html(to_json(reports.s0_report(run)), run), encoding="utf-8")
    return file
