"""When a checkpoint is saved: counted in steps, in epochs or in both, the same from wherever a run goes on."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trainscope.config.saves import Saves


def saves(**changes: int) -> Saves:
    given = {"every_steps": 0, "every_batches": 0, "accumulation": 1, "step": 0, "micro_step": 0, "last": 20}
    return Saves(**(given | changes))


def slow_saves(epochs: int, batches: int, accumulation: int, last: int) -> list[int]:
    """Walk through the micro-batches one by one."""
    found, used = [], 0
    for step in range(1, last):
        ended = False
        for _ in range(accumulation):
            used += 1
            ended = ended or used % (epochs * batches) == 0
        if ended:
            found.append(step)
    return found


@given(
    epochs=st.integers(1, 4), batches=st.integers(1, 9), accumulation=st.integers(1, 6), last=st.integers(1, 40),
    resumed=st.integers(0, 39),
)  # fmt: skip
def test_epochs_save_at_the_first_step_at_or_after_their_end(
    epochs: int, batches: int, accumulation: int, last: int, resumed: int
) -> None:
    expected = slow_saves(epochs, batches, accumulation, last)
    found = saves(every_batches=epochs * batches, accumulation=accumulation, last=last)
    assert [step for step in range(last + 3) if step in found] == expected
    assert found.ahead == len(expected)
    # Counted from the middle it is the same.
    later = saves(
        every_batches=epochs * batches, accumulation=accumulation, last=last,
        step=resumed, micro_step=resumed * accumulation,
    )  # fmt: skip
    assert [step for step in range(last + 3) if step in later] == [step for step in expected if step >= resumed]
    assert later.ahead == sum(step > resumed for step in expected)


def test_steps_and_epochs_save_together() -> None:
    assert [step for step in range(21) if step in saves(every_steps=6)] == [6, 12, 18]
    assert [step for step in range(21) if step in saves(every_batches=8)] == [8, 16]
    assert [step for step in range(21) if step in saves(every_steps=6, every_batches=4)] == [4, 6, 8, 12, 16, 18]
    assert [step for step in range(21) if step in saves()] == []


@given(
    every_steps=st.integers(0, 7), every_batches=st.integers(0, 20), accumulation=st.integers(1, 6),
    step=st.integers(0, 30), last=st.integers(1, 40),
)  # fmt: skip
def test_those_ahead_are_counted_as_one_by_one(
    every_steps: int, every_batches: int, accumulation: int, step: int, last: int
) -> None:
    found = saves(
        every_steps=every_steps, every_batches=every_batches, accumulation=accumulation,
        step=step, micro_step=step * accumulation, last=last,
    )  # fmt: skip
    assert found.ahead == sum(one in found for one in range(step + 1, last))
