"""Python imports this by itself when it starts, in every process that `trainscope exec` or one of its children starts.

It lies in a folder of its own, the first of PYTHONPATH, and lets the environment's own sitecustomize follow.
"""

import importlib.machinery
import importlib.util
import os
import sys
from pathlib import Path


def _go_on() -> None:
    """Leave the path as it was, and run the sitecustomize that this one hides."""
    here = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if not entry or Path(entry).resolve() != here]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", sys.path)
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


def _prepare() -> None:
    try:
        from trainscope.integrations.script import prepare
    except ImportError as error:
        sys.stderr.write(f"trainscope: nothing is recorded: {sys.executable} cannot import it: {error}\n")
    else:
        prepare(os.environ)


if "TRAINSCOPE_EXEC" in os.environ:
    _prepare()
_go_on()
