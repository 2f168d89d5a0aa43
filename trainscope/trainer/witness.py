"""What the run log keeps of every save and resume: fingerprints, checksums, and whether the one continues the other.

Reads the session, changes nothing. Knows nothing of checkpoints' files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from trainscope.config.changes import Change
from trainscope.config.optimizer import component_lr
from trainscope.probes.continuity import Name, compare
from trainscope.probes.fingerprint import (
    Piece,
    as_json,
    digest_of_all,
    group_name,
    number_pieces,
    optimizer_pieces,
    scheduler_pieces,
    tensor_piece,
    tensor_pieces,
)
from trainscope.trainer.checkpoints.restore import Restored
from trainscope.trainer.recorder import SHARDED, Recorder
from trainscope.trainer.session import Session

CLOSE_STEPS = 5
"""What a lost state does is largest in the first steps, and over after some."""


@dataclass
class Witness:
    """Writes `continuity` and `checksums`. What it cannot read is told once, and training goes on."""

    session: Session
    recorder: Recorder
    _told: set[str] = field(default_factory=set)

    def fingerprint(self) -> list[Piece]:
        """The session as it is, for a checkpoint."""
        pieces: list[Piece] = []
        if self._cannot_read("continuity") or not self.session.processes.is_main:
            return pieces
        with self.recorder.log.guarded("continuity"):
            pieces += session_pieces(self.session)
        return pieces

    def checksum(self, moment: str) -> None:
        """Digest the live weights and the average at a moment."""
        session = self.session
        if self._cannot_read("checksums"):
            return
        with self.recorder.log.guarded("checksums"):
            self._row(moment, "raw", session.params)
            if session.ema is not None:
                # In the weights' own format, so that equal weights have equal digests.
                shadows = zip(session.params.items(), session.ema.shadow_params, strict=True)
                self._row(moment, "ema", {name: shadow.to(param.dtype) for (name, param), shadow in shadows})

    def written(self, which: str) -> None:
        """Digest what is being written to a file: the weights that are in place at this moment."""
        if self._cannot_read("checksums"):
            return
        with self.recorder.log.guarded("checksums"):
            self._row("saved", which, self.session.params)

    def compare(self, saved: Sequence[Piece], changes: Sequence[Change], restored: Restored) -> None:
        """After a resume, right before its first step: every piece beside what was saved and what is asked for.

        If the training does not go on exactly as it was, the next steps are looked at one by one.
        """
        session, recorder = self.session, self.recorder
        if self._cannot_read("continuity", "checksums"):
            return
        with recorder.log.guarded("continuity"):
            now = list(session_pieces(session))
            rows = compare(saved, now, asked=asked_values(session, restored), read_as=restored.read_as)
            rows += list(_point_rows(saved, session))
            for change in changes:
                rows.append(
                    {
                        "item": "config",
                        "param": None,
                        "key": change.key,
                        "saved": as_json(change.saved),
                        "loaded": as_json(change.asked),
                        "asked": as_json(change.asked),
                        "status": "changed",
                    }
                )
            for row in rows:
                recorder.log.add_row("continuity", step=session.step, **row)
            if any(row["status"] != "match" for row in rows):
                recorder.look_closely(CLOSE_STEPS)
        self.checksum("resumed")

    def _cannot_read(self, *tables: str) -> bool:
        """Whether no process has the weights as a whole; it is told once for each table."""
        if not self.session.is_sharded:
            return False
        for table in tables:
            if table not in self._told:
                self._told.add(table)
                self.recorder.log.absent(table, None, SHARDED)
        return True

    def _row(self, moment: str, item: str, tensors: Mapping[str, Tensor]) -> None:
        session = self.session
        self.recorder.log.add_row(
            "checksums",
            step=session.step,
            moment=moment,
            item=item,
            mode=session.point(item),
            digest=digest_of_all(tensors),
        )


def session_pieces(session: Session) -> Iterator[Piece]:
    """Everything that the next step depends on."""
    yield from tensor_pieces("weights", "weight", session.params)
    yield from _points(session)
    yield from optimizer_pieces(session.params, session.optimizer)
    yield from scheduler_pieces(session.scheduler)
    yield from number_pieces("scheduler", session.schedule.as_json())
    if session.ema is not None:
        shadows = dict(zip(session.params, session.ema.shadow_params, strict=True))
        yield from tensor_pieces("ema", "shadow", shadows)
        yield from number_pieces("ema", {"updates": session.ema.optimization_step, "decay": session.ema.decay})
    if session.scaler.is_enabled():
        yield from number_pieces("scaler", {"scale": session.scaler.get_scale()})
        yield from number_pieces("scaler", {"growth_tracker": session.scaler.state_dict().get("_growth_tracker")})
    yield from number_pieces(
        "counter",
        {"step": session.step, "optimizer_steps": session.optimizer_steps, "micro_step": session.micro_step},
    )
    if session.accumulated is not None:
        yield tensor_piece("gradients", None, "loss", session.accumulated.loss)
        yield tensor_piece("gradients", None, "leftover", session.accumulated.leftover)
        gradients = {name: param.grad for name, param in session.params.items() if param.grad is not None}
        yield from tensor_pieces("gradients", "grad", gradients)
    yield tensor_piece("random", None, "torch", torch.get_rng_state())
    if session.rounding is not None:
        yield tensor_piece("random", None, "rounding", session.rounding.generator.get_state())
    yield from number_pieces("base", {"unet": session.frozen_digest})
    yield from number_pieces("order", {"seed": session.seed, "samples": session.data.identity()})
    for pair in session.pairs:
        yield Piece("lora", pair.module, "scale", None, None, as_json(pair.scale))


def _points(session: Session) -> Iterator[Piece]:
    """Schedule-Free: digests of the weights at both points, to tell later which of them were loaded."""
    if session.point("raw") is None:
        return
    here = digest_of_all(session.params)
    with session.weights("raw"):
        x = digest_of_all(session.params)
    yield from number_pieces("schedule-free", {"point": session.point("raw"), "weights at x": x, "weights": here})


def _point_rows(saved: Sequence[Piece], session: Session) -> Iterator[dict[str, object]]:
    """At which point the weights are now by their digest, beside the mode that the optimizer says it is in."""
    before = {piece.key: piece.value for piece in saved if piece.item == "schedule-free"}
    if not before or session.point("raw") is None:
        return
    digest = as_json(digest_of_all(session.params))
    at_x, at_y = digest == before.get("weights at x"), digest == before.get("weights")
    mode = session.point("raw")
    # Before the first step that moves them the two points are one.
    found = mode if at_x and at_y else "x" if at_x else "y" if at_y else "other"
    yield {
        "item": "schedule-free",
        "param": None,
        "key": "mode at the weights' point",
        "saved": as_json(found),
        "loaded": as_json(mode),
        "asked": None,
        "status": "match" if found in (mode, "other") else "changed",
    }


def asked_values(session: Session, restored: Restored) -> dict[Name, str]:
    """What the configuration asks for, by the names of the fingerprint."""
    config, schedule = session.config, session.schedule
    asked: dict[Name, str] = {("scheduler", None, key): as_json(value) for key, value in schedule.as_json().items()}
    section = config.optimizer.model_dump(exclude={"type"})
    for number, group in enumerate(session.optimizer.param_groups):
        name = group_name(group, number)
        asked[("scheduler", name, "base_lr")] = as_json(component_lr(config.optimizer, name))
        for key, value in section.items():
            if key in group and key != "lr":
                asked[("group", name, key)] = as_json(value)
        asked[("group", name, "lr")] = as_json(restored.lrs[number])
    asked[("scheduler", None, "last_epoch")] = as_json(restored.position)
    if session.ema is not None:
        asked[("ema", None, "decay")] = as_json(config.ema.decay)
    scale = config.lora.alpha / config.lora.rank
    asked.update({("lora", pair.module, "scale"): as_json(scale) for pair in session.pairs})
    return asked
