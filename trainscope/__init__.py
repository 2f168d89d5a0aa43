"""trainscope: diagnostics and auditing for training runs."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainscope.integrations.attach import attach as attach
    from trainscope.runlog.reader import read_run as read_run

__version__ = "0.1.0"

_LAZY = {"attach": "trainscope.integrations.attach", "read_run": "trainscope.runlog.reader"}
"""Names and the modules that have them; imported when they are first asked for, since some need torch."""


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
