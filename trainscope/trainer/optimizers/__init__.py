"""Optimizers and learning rate schedules, all from their own libraries."""

from trainscope.trainer.optimizers.build import build_optimizer
from trainscope.trainer.optimizers.rounding import StochasticRounding
from trainscope.trainer.optimizers.schedule import build_scheduler

__all__ = ["StochasticRounding", "build_optimizer", "build_scheduler"]
