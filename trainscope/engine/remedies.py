"""Which remedies to apply together, so that one rerun shows the whole cure.

Edits no text (`trainscope.toml` does) and writes no file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

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
