"""The measures that are equal or not: new findings, the setup, and what a resume lost. Knows no statistics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from trainscope.engine.gate.measures import EXACT
from trainscope.engine.gate.policy import Policy, reaches
from trainscope.engine.gate.profile import Profile
from trainscope.engine.gate.setup import differences
from trainscope.schema import Compared, Comparison

METHOD = "equal or not"


def exact_comparisons(candidate: Profile, baselines: Sequence[Profile], policy: Policy) -> Iterator[Comparison]:
    """One comparison each."""
    yield _findings(candidate, baselines, policy)
    yield _setup(candidate, baselines)
    yield from _continuity(candidate, baselines)


def _findings(candidate: Profile, baselines: Sequence[Profile], policy: Policy) -> Comparison:
    """By code: the places of a finding, and so its fingerprint, differ between seeds."""
    known = {found.code for baseline in baselines for found in baseline.findings}
    counted = [found for found in candidate.findings if reaches(found.severity, policy.findings)]
    new = [found for found in counted if found.code not in known]
    details = [f"{found.code} {found.severity}: {found.message}" for found in new]
    steps = [found.first_step for found in new if found.first_step is not None]
    codes = {found.code for found in counted}
    before = [float(sum(found.code in codes for found in baseline.findings)) for baseline in baselines]
    return _comparison("findings", before, len(new), details, min(steps, default=None))


def _setup(candidate: Profile, baselines: Sequence[Profile]) -> Comparison:
    """Beside the baseline that is most like the candidate."""
    details = min((differences(candidate, baseline) for baseline in baselines), key=len)
    if candidate.status == "crashed" and all(baseline.status != "crashed" for baseline in baselines):
        details = [f"the candidate crashed at step {candidate.last_step}", *details]
    return _comparison("setup", [0.0] * len(baselines), len(details), details, 1)


def _continuity(candidate: Profile, baselines: Sequence[Profile]) -> Iterator[Comparison]:
    profiles = (candidate, *baselines)
    if not any(profile.continuity for profile in profiles):
        return
    known = {(broken.what, broken.status) for baseline in baselines for broken in baseline.continuity}
    new = [broken for broken in candidate.continuity if (broken.what, broken.status) not in known]
    details = [
        f"{broken.what}: {broken.status}" + (f" ({broken.count} times)" if broken.count > 1 else "") for broken in new
    ]
    steps = [broken.step for broken in new if broken.step is not None]
    before = [float(len(baseline.continuity)) for baseline in baselines]
    yield _comparison("continuity", before, len(new), details, min(steps, default=None))


def _comparison(name: str, before: Sequence[float], count: int, details: Sequence[str], step: int | None) -> Comparison:
    outcome: Compared = "fail" if count else "pass"
    return Comparison(
        name=name,
        where="",
        title=EXACT[name],
        unit="",
        outcome=outcome,
        baseline=tuple(before),
        candidate=float(count),
        allowed=(None, 0.0),
        smallest_change=1.0,
        relative=False,
        parts_at=step if count else None,
        method=METHOD,
        reason="; ".join(details[:3]) + (f"; and {len(details) - 3} more" if len(details) > 3 else ""),
        details=tuple(details),
    )
