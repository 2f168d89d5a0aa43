"""The corrected configuration: which remedies to apply, and the cfg.toml that results, comments and all.

Edits text; knows no configuration schema and writes no file.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from trainscope.errors import ConfigError
from trainscope.schema import Finding, Remedy, Report

MIN_SCORE = 0.5
"""A further cause is corrected too from this share of the trouble on."""


def chosen_patches(report: Report) -> list[tuple[str, Remedy]]:
    """(code, remedy) to apply together: for each diagnosis the first remedy of its likeliest cause, and of each further
    cause with a large share. None of them touches a key that another one has set.
    """
    by_fingerprint = {finding.fingerprint: finding for finding in report.findings}
    chosen: list[tuple[str, Remedy]] = []
    patched: set[str] = set()
    for diagnosis in report.diagnoses:
        causes = [by_fingerprint[cause.finding] for cause in diagnosis.causes]
        # Without a cause, what can be cured is how it comes about, or what is seen.
        for rank, finding in enumerate(causes or _uncaused(diagnosis.mechanisms or diagnosis.symptoms, by_fingerprint)):
            remedy = next((remedy for remedy in finding.remedies if remedy.config_patch), None)
            if remedy is None or (rank > 0 and finding.score < MIN_SCORE) or patched & remedy.config_patch.keys():
                continue
            patched |= remedy.config_patch.keys()
            chosen.append((finding.code, remedy))
    return chosen


def _uncaused(fingerprints: Iterable[str], findings: Mapping[str, Finding]) -> list[Finding]:
    return [findings[fingerprint] for fingerprint in fingerprints]


def corrected_config(text: str, patches: Iterable[Mapping[str, Any]]) -> str:
    """The text of a cfg.toml with dotted keys set, everything else as it was; missing tables are added at the end."""
    import tomlkit  # only `fix` and the report's diffs need it
    from tomlkit.exceptions import TOMLKitError

    try:
        document: Any = tomlkit.parse(text)
        for patch in patches:
            for key, value in patch.items():
                _set(document, key, value)
        return str(tomlkit.dumps(document))
    except TOMLKitError as error:
        raise ConfigError(f"the configuration cannot be corrected: {error}") from error


def diff(text: str, patch: Mapping[str, Any], name: str = "cfg.toml") -> str:
    """What a patch changes, as a unified diff; empty where it changes nothing."""
    before, after = text.splitlines(keepends=True), corrected_config(text, [patch]).splitlines(keepends=True)
    lines = difflib.unified_diff(before, after, fromfile=name, tofile=name)
    # A last line without its end would run into the next one.
    return "".join(line if line.endswith("\n") else f"{line}\n" for line in lines)


def _set(document: Any, key: str, value: Any) -> None:
    import tomlkit

    *path, last = key.split(".")
    table = document
    for depth, part in enumerate(path):
        if part not in table:
            table[part] = tomlkit.table()
        table = table[part]
        if not isinstance(table, dict):
            raise ConfigError(f"{key} cannot be set: {'.'.join(path[: depth + 1])} is a value in this configuration")
    table[last] = value
