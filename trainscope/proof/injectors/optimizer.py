"""What loaders and wrappers do to the settings that the optimizer was made with. Knows nothing of rules."""

from __future__ import annotations

from collections.abc import Callable

from trainscope.proof.injectors.kinds import AtStart, Injectors
from trainscope.trainer.session import Session


def _groups_of_another_run(**settings: float) -> Callable[[Session], None]:
    """The state of another run is loaded for its moments: what its groups say stands above the constructor's values."""

    def change(session: Session) -> None:
        for group in session.optimizer.param_groups:
            group.update(settings)

    return change


def _schedule_of_the_trainer(session: Session) -> None:
    """The Trainer of transformers without `lr_scheduler_type`: an even fall to 0, whatever the optimizer is."""
    steps = session.plan.steps
    shapes = [lambda done: max(0.0, 1 - done / steps)] * len(session.scheduler.lr_lambdas)
    session.scheduler.lr_lambdas = shapes


INJECTORS: Injectors = {
    "growth-limit-of-another-run": lambda: AtStart(_groups_of_another_run(growth_rate=1.02)),
    "d-coef-of-another-run": lambda: AtStart(_groups_of_another_run(d_coef=0.01)),
    "weight-decay-of-another-run": lambda: AtStart(_groups_of_another_run(weight_decay=10.0)),
    "averaging-power-of-another-run": lambda: AtStart(_groups_of_another_run(r=50.0)),
    "linear-decay-by-default": lambda: AtStart(_schedule_of_the_trainer),
}
