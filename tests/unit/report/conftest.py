"""Gives the tests the hand-made reports, whatever pytest's import mode is."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from trainscope.schema import to_json


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("report_fixture", Path(__file__).with_name("fixture.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def reports() -> ModuleType:
    """The module with s0_report, clean_report, unobservable_report and png."""
    return _load()


@pytest.fixture
def s0(reports, tmp_path):
    """The broken run's report.json as a dict; its images lie under tmp_path."""
    return to_json(reports.s0_report(tmp_path))
