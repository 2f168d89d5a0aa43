from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainscope.config.buckets import batches_per_epoch
from trainscope.errors import DataError
from trainscope.trainer.data.order import epoch_batches, micro_batches, sample_of
from trainscope.trainer.data.split import split_validation


@dataclass(frozen=True)
class Picture:
    digest: str
    dropped: str | None = None


def test_an_epoch_visits_each_sample_once_and_the_last_batch_is_short() -> None:
    batches = epoch_batches([range(10, 38)], 8, seed=1, epoch=0)
    assert [len(batch) for batch in batches] == [8, 8, 8, 4]
    assert sorted(itertools.chain(*batches)) == list(range(10, 38))


def test_the_order_depends_on_seed_and_epoch() -> None:
    for groups in ([range(28)], [range(20), range(20, 28)]):
        orders = {str(epoch_batches(groups, 4, seed=seed, epoch=epoch)) for seed in (0, 1) for epoch in (0, 1)}
        assert len(orders) == 4
        assert epoch_batches(groups, 4, seed=0, epoch=3) == epoch_batches(groups, 4, seed=0, epoch=3)


def test_repeats_are_visits_of_their_own() -> None:
    visits = list(itertools.chain(*epoch_batches([[0, 7]], 3, seed=0, epoch=0, repeats=3)))
    assert len(set(visits)) == 6
    assert sorted(map(sample_of, visits)) == [0, 0, 0, 7, 7, 7]
    assert {0, 7} < set(visits)  # the first visit is named by the sample alone


def test_a_batch_has_one_bucket_and_buckets_come_mixed() -> None:
    groups = [list(range(9)), list(range(20, 25)), [40]]
    batches = epoch_batches(groups, 4, seed=0, epoch=0, repeats=2)
    of = {sample: number for number, group in enumerate(groups) for sample in group}
    buckets = [{of[sample_of(visit)] for visit in batch} for batch in batches]
    assert all(len(bucket) == 1 for bucket in buckets)
    order = [min(bucket) for bucket in buckets]
    assert sorted(order) == [0] * 5 + [1] * 3 + [2]
    assert order != sorted(order)
    firsts = {min(of[sample_of(v)] for v in epoch_batches(groups, 4, seed=0, epoch=epoch)[0]) for epoch in range(30)}
    assert firsts == {0, 1, 2}
    visited = [sample_of(visit) for visit in itertools.chain(*batches)]
    assert sorted(visited) == sorted([sample for group in groups for sample in group] * 2)


GROUPS = st.lists(st.integers(1, 9), min_size=1, max_size=4)


@given(GROUPS, st.integers(1, 9), st.integers(0, 60), st.integers(0, 3), st.integers(1, 3))
def test_any_position_continues_the_same_sequence(
    counts: list[int], batch_size: int, start: int, seed: int, repeats: int
) -> None:
    groups = [[100 * number + place for place in range(count)] for number, count in enumerate(counts)]
    how = {"seed": seed, "repeats": repeats}
    whole = list(itertools.islice(micro_batches(groups, batch_size, **how), start + 12))
    rest = list(itertools.islice(micro_batches(groups, batch_size, start=start, **how), 12))
    assert rest == whole[start:]
    assert [batch.position for batch in whole] == list(range(start + 12))
    each = batches_per_epoch(counts, batch_size, repeats=repeats)
    assert all(batch.epoch == batch.position // each for batch in whole)


def test_nothing_to_train_on_is_an_error() -> None:
    for groups in ([], [[]]):
        with pytest.raises(DataError, match="no sample to train on"):
            epoch_batches(groups, 4, seed=0, epoch=0)
        with pytest.raises(DataError, match="no sample to train on"):
            next(micro_batches(groups, 4, seed=0, start=3))


def test_the_split_follows_the_files_and_not_their_places() -> None:
    pictures = [Picture(f"{number:02x}") for number in range(30)]
    train, held_out = split_validation(pictures, 0.1, seed=0)
    assert len(held_out) == 3
    assert split_validation(pictures[::-1], 0.1, seed=0) == (train[::-1], held_out[::-1])
    assert split_validation(pictures, 0.1, seed=1)[1] != held_out


def test_a_new_picture_moves_few_others() -> None:
    pictures = [Picture(f"{number:02x}") for number in range(30)]
    before = set(split_validation(pictures, 0.2, seed=0)[1])
    after = set(split_validation([*pictures, Picture("new")], 0.2, seed=0)[1])
    assert len(before ^ after) <= 2


@given(
    st.lists(st.sampled_from("abcdefgh"), max_size=20),
    st.floats(0, 0.99),
    st.integers(0, 5),
)
def test_copies_stay_on_one_side(digests: list[str], fraction: float, seed: int) -> None:
    pictures = [Picture(digest) for digest in digests]
    train, held_out = split_validation(pictures, fraction, seed)
    assert not {picture.digest for picture in train} & {picture.digest for picture in held_out}
    assert len(train) + len(held_out) == len(pictures)
    assert bool(train) == bool(pictures)
    assert bool(held_out) == (fraction > 0 and len(set(digests)) > 1)


def test_dropped_pictures_are_on_neither_side() -> None:
    pictures = [Picture("a"), Picture("b", dropped="truncated"), Picture("c")]
    train, held_out = split_validation(pictures, 0.5, seed=0)
    assert {picture.digest for picture in train + held_out} == {"a", "c"}


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 10])
def test_impossible_fractions(fraction: float) -> None:
    with pytest.raises(DataError, match="validation_split"):
        split_validation([Picture("a")], fraction, seed=0)
