"""Optimizers and learning rate schedules, all from their own libraries."""

from trainscope.trainer.optimizers.build import build_optimizer, build_scheduler
from trainscope.trainer.optimizers.rounding import StochasticRounding

__all__ = ["StochasticRounding", "build_optimizer", "build_scheduler"]
