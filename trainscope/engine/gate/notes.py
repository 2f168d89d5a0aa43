"""What a reader of a verdict must know beside it: configuration keys that differ, and what was not compared.

Judges nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from trainscope.engine.gate.profile import Profile
from trainscope.schema import ChangedKey

_OF_THE_RUN = ("run.name", "run.dir", "run.seed")
_LAST = ("sample.", "eval.", "probes.", "audit.", "checkpoint.")
"""Sections that change no weight: their keys are named after the others."""


def changed_keys(candidate: Profile, baseline: Profile) -> tuple[ChangedKey, ...]:
    """Keys that both know and that differ, those first that can be the cause of something."""
    old, new = baseline.config, candidate.config
    found = [
        ChangedKey(key, old[key], new[key])
        for key in sorted({*old} & {*new})
        if old[key] != new[key] and key not in _OF_THE_RUN
    ]
    # A key of another optimizer is known to one of them alone.
    if old and new:
        alone = [key for key in sorted({*old} ^ {*new}) if key.startswith("optimizer.")]
        found += [ChangedKey(key, old.get(key), new.get(key)) for key in alone]
    return tuple(sorted(found, key=lambda one: (one.key.startswith(_LAST), one.key)))


def notes(candidate: Profile, baselines: Sequence[Profile]) -> tuple[str, ...]:
    """Sentences."""
    return tuple(_notes(candidate, baselines))


def _notes(candidate: Profile, baselines: Sequence[Profile]) -> Iterator[str]:
    for who, profile in [("the candidate", candidate), *((f"baseline {each.name}", each) for each in baselines)]:
        if profile.status == "running":
            yield f"{who} still runs: compared up to step {profile.last_step}"
        elif profile.status in ("crashed", "interrupted"):
            yield f"{who} was {profile.status} at step {profile.last_step}".replace("was crashed", "crashed")
    steps = {profile.last_step for profile in (candidate, *baselines)}
    if len(steps) > 1:
        shortest = min(steps)
        others = " and ".join(str(each.last_step) for each in baselines) if len(baselines) < 4 else "several lengths"
        yield f"the candidate has {candidate.last_step} steps and the baseline {others}: compared up to step {shortest}"
    twins = [each for each in baselines if each.id == candidate.id and each.id]
    if twins:
        yield f"baseline {twins[0].name} is the candidate itself"
    seeds = [each.config.get("run.seed") for each in baselines if each.config.get("run.seed") is not None]
    if len(baselines) > 1 and len(set(seeds)) < len(seeds):
        yield "baselines share a seed: they differ less than seeds do, and the intervals are too narrow"
