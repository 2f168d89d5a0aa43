"""The loop of train.py, watched by a line after `accelerator.prepare`."""

from __future__ import annotations

from functools import partial

from train import main

from trainscope.integrations.accelerate import watch

main(partial(watch, name="accelerate-lora"))
