"""Making several micro-batches at once changes none of them, and is done only where no encoder has to work."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from trainscope.proof.runs import RunSpec
from trainscope.trainer import ahead
from trainscope.trainer.ahead import AHEAD, Ahead, load_and_draw
from trainscope.trainer.build import build_session
from trainscope.trainer.data.order import MicroBatch
from trainscope.trainer.session import Session


def micro_batches(session: Session, start: int = 0) -> Ahead:
    return Ahead(session, session.data.micro_batches(2, seed=session.seed, start=start))


@pytest.mark.parametrize("accumulated", [1, 3])
def test_what_is_made_ahead_is_what_its_turn_would_have_made(accumulated: int) -> None:
    session = build_session(RunSpec({"data.caption_dropout": 0.5, "noise.offset": 0.1}).resolved())
    batches, plain = micro_batches(session, start=2), session.data.micro_batches(2, seed=session.seed, start=2)
    for _ in range(2 * AHEAD // accumulated + 1):
        step = [next(batches) for _ in range(accumulated)]
        for micro_batch in step:
            batch, draw = batches.take(micro_batch)
            wanted = next(plain)
            assert micro_batch == wanted
            wanted_batch, wanted_draw = load_and_draw(session, wanted)
            assert batch.samples == wanted_batch.samples
            assert torch.equal(batch.latents, wanted_batch.latents)
            assert torch.equal(batch.text, wanted_batch.text)
            assert torch.equal(draw.noise, wanted_draw.noise)
            assert torch.equal(draw.timesteps, wanted_draw.timesteps)


@pytest.mark.parametrize(
    ("changes", "at_once"),
    [
        ({}, AHEAD),
        ({"data.cache_latents": "off"}, 1),
        ({"data.cache_text": "off"}, 1),
        ({"data.shuffle_captions": True}, 1),
        ({"train.parts": ["unet", "text_encoder"]}, 1),
        ({"model.base": "tiny:sd15-inpainting"}, 1),
    ],
)
def test_only_what_is_looked_up_is_made_ahead(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], at_once: int
) -> None:
    session = build_session(RunSpec(changes).resolved())
    made: list[int] = []

    def counted(session: Session, micro_batch: MicroBatch) -> Any:
        made.append(micro_batch.position)
        return load_and_draw(session, micro_batch)

    monkeypatch.setattr(ahead, "load_and_draw", counted)
    batches = micro_batches(session)
    batches.take(next(batches))
    assert made == list(range(at_once))
    for _ in range(AHEAD):
        batches.take(next(batches))
    assert len(made) == len(set(made))
