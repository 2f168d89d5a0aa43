"""Where in somebody's cfg.toml a finding is to be mended: the line that the first of its remedies changes.

Must not know the formats that point there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainscope.toml import line_of

Json = dict[str, Any]


@dataclass(frozen=True)
class ConfigFile:
    """A cfg.toml: its text, and how it is called from where CI runs (with slashes)."""

    path: str
    text: str

    def line(self, finding: Json, report: Json) -> int:
        """The line of a key that the finding's first remedy changes, or of the table where the key belongs.

        A finding without a remedy has that of its diagnosis. 1 where there is none.
        """
        told = [d for d in report["diagnoses"] if finding["fingerprint"] in _findings(d)]
        remedies = [*finding["remedies"], *(remedy for diagnosis in told for remedy in diagnosis["remedies"])]
        keys = [key for remedy in remedies for key in remedy["config_patch"]]
        return next((line for key in keys if (line := line_of(self.text, key)) is not None), 1)


def _findings(diagnosis: Json) -> list[str]:
    return [*diagnosis["symptoms"], *diagnosis["mechanisms"], *(cause["finding"] for cause in diagnosis["causes"])]


def config_file(path: Path | None, text: str, *, otherwise: Path) -> ConfigFile:
    """The file that a run was started with, if it lies there as it was; else `otherwise`, the copy that is kept."""
    chosen = otherwise
    try:
        if path is not None and path.read_text(encoding="utf-8") == text:
            chosen = path
    except (OSError, UnicodeDecodeError):
        pass
    chosen, here = chosen.absolute(), Path.cwd()
    return ConfigFile((chosen.relative_to(here) if chosen.is_relative_to(here) else chosen).as_posix(), text)
