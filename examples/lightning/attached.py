"""The training of train.py, watched by a callback."""

from __future__ import annotations

from train import main

from trainscope.integrations.lightning import TrainscopeCallback

main((TrainscopeCallback(name="lightning"),))
