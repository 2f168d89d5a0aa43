"""Every key of cfg.toml has an effect: in weights, batches, latents, schedule, images, files or on the console.

A key without a case fails here, and so does a case without a key. That a key is recorded is no effect.
"""

from __future__ import annotations

import pytest
import torch

from tests.integration.every_key import cases_course, cases_data, cases_optimizer, cases_training
from tests.integration.every_key.watch import Case, Own, Watcher, same
from tests.leaves import leaves

torch.set_num_threads(1)

CASES: dict[str, Case | Own] = {
    **cases_training.CASES,
    **cases_data.CASES,
    **cases_course.CASES,
    **cases_optimizer.CASES,
}


@pytest.fixture(scope="module")
def watcher(tmp_path_factory: pytest.TempPathFactory) -> Watcher:
    return Watcher(tmp_path_factory.mktemp("every-key"))


def test_every_key_has_a_case_and_every_case_a_key() -> None:
    assert set(CASES) == set(leaves())


@pytest.mark.parametrize("key", CASES)
def test_effect(key: str, watcher: Watcher) -> None:
    case = CASES[key]
    if not isinstance(case, Case):
        case(watcher)
        return
    before, again = (case.look(watcher.seen(case.base, time)) for time in (1, 2))
    after = case.look(watcher.see({**case.base, key: case.value}))
    assert same(before, again), "the same training was another one the second time"
    assert not same(before, after), f"{key} = {case.value!r} changed nothing"
    assert case.means(before, after), (before, after)
