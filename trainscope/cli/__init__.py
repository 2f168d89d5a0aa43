"""The command line: one verb a file. Imports lazily, so that `--help`, `audit` and `preflight` never import torch."""

from trainscope.cli.app import main

__all__ = ["main"]
