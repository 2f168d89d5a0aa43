"""The exceptions that reach a user: one message, one hint, one exit code.

Everything that trainscope raises on purpose derives from `TrainscopeError`. The command line prints it without a
traceback (`--debug` shows one) and exits with `exit_code`. Knows nothing of any other layer.
"""

from __future__ import annotations

from collections.abc import Sequence


class TrainscopeError(Exception):
    """A failure that the user can act on.

    `hint` is the next thing to try, in one sentence; `exit_code` is what the command line exits with.
    """

    exit_code = 2

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class ConfigError(TrainscopeError):
    """The configuration is wrong; `problems` lists every error found, each with its key path."""

    def __init__(self, message: str, *, problems: Sequence[str] = (), hint: str | None = None) -> None:
        super().__init__("\n".join([message, *(f"  {problem}" for problem in problems)]), hint=hint)
        self.problems = list(problems)


class DataError(TrainscopeError):
    """The training data cannot be used: a missing folder, an unreadable image, no captions."""


class ModelError(TrainscopeError):
    """A model or an adapter cannot be loaded, or does not fit the configuration."""


class RunError(TrainscopeError):
    """A run directory cannot be created or read: not a run, damaged, in use, or of a newer format."""


class RuleError(TrainscopeError):
    """A rule folder is invalid: a bad header, an unknown column, a query that is not a single SELECT."""


class TrainingError(TrainscopeError):
    """A training could not go on: out of memory, disk full, non-finite by policy."""
