"""The held-out loss: the same images, noise and timesteps at every evaluation of every run.

Diffusion loss is noise; only with its draws fixed does it tell what was learned. It is the plain mean squared error at
plain noise over all timesteps, whatever `train.loss` and `[noise]` say, so that runs which train differently compare.
Knows nothing of the run's seed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from trainscope.config.buckets import Size
from trainscope.trainer.batch import load_batch
from trainscope.trainer.data.visits import EVALUATION
from trainscope.trainer.diffusion import denoise
from trainscope.trainer.loss import Objective
from trainscope.trainer.noise import Draw, generator, noise_like, spread_timesteps
from trainscope.trainer.session import Session

EVAL_SEED = 0
"""Not the run's: runs with different seeds are measured alike."""
BATCH = 16


@torch.no_grad()
def evaluate(session: Session) -> float:
    """Mean squared error over `eval.samples` fixed draws, with the weights as they are now. Draws no random number."""
    draws = session.config.eval.samples
    with ExitStack() as stack:
        for model in session.trained_models:
            stack.enter_context(_no_dropout(model))
        losses = [_losses(session, numbers, draws) for numbers in _batches(session, draws)]
    return float(torch.cat(losses).double().mean())


def _batches(session: Session, draws: int) -> Iterator[list[int]]:
    """The numbers of the draws in batches, each of pictures of one bucket."""
    data = session.data
    groups: dict[Size, list[int]] = {}
    for number in range(draws):
        groups.setdefault(data.buckets[data.evaluation[number % len(data.evaluation)]], []).append(number)
    for numbers in groups.values():
        for start in range(0, len(numbers), BATCH):
            yield numbers[start : start + BATCH]


def _losses(session: Session, numbers: list[int], draws: int) -> Tensor:
    held_out = session.data.evaluation
    samples = [held_out[number % len(held_out)] for number in numbers]
    batch = load_batch(session, samples, position=EVALUATION)
    noise = torch.cat(
        [
            noise_like(batch.latents.shape[1:], seed=EVAL_SEED, step=number, samples=[0], purpose="eval")
            for number in numbers
        ]
    )
    # Evenly spread over the timesteps, in an order that does not follow that of the samples.
    total = session.components.noise_scheduler.config.num_train_timesteps
    order = torch.randperm(draws, generator=generator(EVAL_SEED, "eval order"))
    timesteps = spread_timesteps(draws, high=total)[order][numbers]
    plain = Objective(session.objective.prediction)
    return denoise(session, batch, Draw(noise, noise, timesteps).to(session.device), plain).losses


@contextmanager
def _no_dropout(model: torch.nn.Module) -> Iterator[None]:
    """eval() for a while. `train(True)` afterwards would also wake modules that were asleep, so each is restored."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
