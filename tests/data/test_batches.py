"""Which rows an update holds: the same whatever the number of micro-steps and processes, every row as often as any
other, and with buckets all of one size."""

import warnings
from collections import Counter

import numpy as np
import pytest

from mezzotint_training.config.errors import UserError
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.data.batches import KeyedBatches, size_buckets


def updates(length, batch_size, accumulation, world, count, seed=0, start=0, buckets=None) -> list[list[tuple]]:
    """The keys of `count` updates from `start` on, over all micro-steps and processes."""
    made = [[] for _ in range(count)]
    for rank in range(world):
        batches = iter(KeyedBatches(length, batch_size, accumulation, rank, world, seed, start, buckets))
        for update in made:
            for _ in range(accumulation):
                batch = next(batches)
                assert len(batch) == batch_size
                update += batch
    return made


def test_an_update_has_the_same_pictures_however_they_are_dealt_out():
    expected = updates(13, 8, 1, 1, count=9)
    for dealt in ((1, 8, 1), (4, 2, 1), (4, 1, 2), (2, 2, 2), (1, 1, 8)):
        assert [sorted(x) for x in updates(13, *dealt, count=9)] == [sorted(x) for x in expected]


@pytest.mark.parametrize("length, batch_size", [(13, 8), (13, 13), (3, 8), (64, 1)])
def test_an_epoch_is_a_permutation_and_each_is_another(length, batch_size):
    keys = [key for update in updates(length, batch_size, 1, 1, count=6 * length // batch_size + 1) for key in update]
    orders = [[row for e, row in keys if e == epoch] for epoch in range(6)]
    assert [sorted(order) for order in orders] == [list(range(length))] * 6
    assert [epoch for epoch, _ in keys] == sorted(epoch for epoch, _ in keys)
    assert len({tuple(order) for order in orders}) > (6 if length > 3 else 1) - 1
    other = [key for update in updates(length, batch_size, 1, 1, len(keys) // batch_size, seed=1) for key in update]
    assert other != keys[: len(other)]


@pytest.mark.parametrize("dealt", [(8, 1, 1), (2, 2, 2), (3, 5, 1)])
def test_a_start_skips_what_came_before(dealt):
    whole = updates(13, *dealt, count=12)
    for start in (1, 5, 11):
        assert updates(13, *dealt, count=12 - start, start=start) == whole[start:]


# ------------------------------------------------------------------------------------------------------------- buckets

BUCKETS = np.array([0] * 11 + [2] * 16 + [1] * 3 + [2] * 1 + [0] * 2)  # 13, 3 and 17 rows: 2 + 1 + 3 chunks of 8


def test_an_update_is_of_one_bucket_and_the_same_however_it_is_dealt_out():
    expected = updates(33, 8, 1, 1, count=18, buckets=BUCKETS)
    for update in expected:
        assert len({BUCKETS[position] for _, position, _ in update}) == 1
    for dealt in ((1, 8, 1), (4, 2, 1), (4, 1, 2), (2, 2, 2), (1, 1, 8)):
        dealt_out = updates(33, *dealt, count=18, buckets=BUCKETS)
        assert [sorted(x) for x in dealt_out] == [sorted(x) for x in expected]
    for start in (1, 6, 11):
        assert updates(33, 2, 2, 2, count=18 - start, start=start, buckets=BUCKETS) == [
            *updates(33, 2, 2, 2, count=18, buckets=BUCKETS)[start:]
        ]


def test_every_row_of_every_bucket_comes_in_every_epoch_and_fills_are_copies():
    keys = [key for update in updates(33, 8, 1, 1, count=5 * 6, buckets=BUCKETS) for key in update]
    assert len(set(keys)) == len(keys)  # no key twice: copies have noise of their own
    for epoch in range(5):
        first = sorted(position for e, position, copy in keys if e == epoch and copy == 0)
        assert first == list(range(33))
        copies = Counter(position for e, position, copy in keys if e == epoch)
        for bucket, rows in ((0, 13), (1, 3), (2, 17)):
            counts = [copies[position] for position in np.flatnonzero(bucket == BUCKETS)]
            assert sum(counts) == -(-rows // 8) * 8 and max(counts) - min(counts) <= 1  # as even as can be
    fills = [tuple(sorted(p for e, p, copy in keys if e == epoch and copy)) for epoch in range(5)]
    assert len(set(fills)) > 1  # drawn anew


def test_the_order_of_chunks_and_within_them_is_drawn_anew():
    made = updates(33, 8, 1, 1, count=8 * 6, buckets=BUCKETS)
    orders = [[BUCKETS[update[0][1]] for update in made[6 * e : 6 * e + 6]] for e in range(8)]
    assert all(sorted(order) == [0, 0, 1, 2, 2, 2] for order in orders) and len({tuple(o) for o in orders}) > 3
    together = [frozenset(p for _, p, _ in update) for update in made if all(c == 0 for _, _, c in update)]
    assert len(set(together)) == len(together) == 8 * 3  # other rows together each time
    assert updates(33, 8, 1, 1, count=6, seed=1, buckets=BUCKETS) != made[:6]


def test_one_bucket_of_a_multiple_of_the_update_is_the_plain_epoch():
    plain = updates(16, 8, 1, 1, count=2)
    bucketed = updates(16, 8, 1, 1, count=2, buckets=np.zeros(16, dtype=int))
    assert sorted((e, p, 0) for update in plain for e, p in update) == sorted(k for update in bucketed for k in update)


def test_sizes_are_read_from_their_text():
    def sizes(text, size=(64, 64), factor=4):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return size_buckets(TrainConfig(dataset_name="digits", aspect_ratio_buckets=text), size, factor)

    assert sizes(None, (32, 48)) == [(32, 48)]
    assert sizes("64,64; 48,84") == [(64, 64), (48, 84)]
    for size, factor in (((64, 64), 4), ((96, 32), 8), ((8, 8), 2)):
        auto, area = sizes("auto", size, factor), size[0] * size[1]
        assert len(set(auto)) == len(auto) > 2 and {(w, h) for h, w in auto} == set(auto)
        for height, width in auto:
            assert height % factor == width % factor == 0 and 0.3 < width / height < 3
            assert abs(height - (area * height / width) ** 0.5) <= factor  # of that area, up to rounding
    rule = "aspect_ratio_buckets must be 'auto' or 'height,width;height,width;...': "
    for text in ("64x64", "64,64;", "auto,64", "0,8"):
        with pytest.raises(UserError, match=rule):
            sizes(text)
    with pytest.raises(UserError, match="^aspect_ratio_buckets must be multiples of 4 for this model: got 48,82$"):
        sizes("64,64;48,82")
