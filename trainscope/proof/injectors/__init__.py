"""Faults that no configuration can express, each done to a real training the way it happens in the field.

An injector is a `Callback`; the configuration of the run says nothing of it, so a rule that finds the fault found it in
what was measured. Knows nothing of rules.
"""

from __future__ import annotations

from trainscope.proof.injectors import (
    adapters,
    average,
    data,
    feeding,
    looping,
    noise,
    optimizer,
    pictures,
    precision,
    schedule,
    schedulefree,
    state,
    training,
    weights,
)
from trainscope.proof.injectors.kinds import Injectors
from trainscope.trainer.callbacks import Callback

INJECTORS: Injectors = {
    name: make
    for module in (
        training,
        state,
        schedule,
        data,
        schedulefree,
        average,
        adapters,
        noise,
        looping,
        feeding,
        weights,
        optimizer,
        precision,
        pictures,
    )
    for name, make in module.INJECTORS.items()
}


def make_injector(name: str) -> Callback:
    """A fresh injector. Raises KeyError for an unknown name."""
    return INJECTORS[name]()
