"""Which rows an update holds: the same whatever the number of micro-steps and processes, every row as often as any
other, and with buckets all of one size."""

import itertools
import math
import warnings
from collections import Counter

import datasets
import numpy as np
import pytest

from mezzotint_training.config.errors import UserError
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.data.balance import Balance, column_to_balance, facts
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
        assert len({int(BUCKETS[position]) for _, position, _ in update}) == 1
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


# ------------------------------------------------------------------------------------------------------------- balance

FAMILIES = np.array([0] * 60 + [1] * 25 + [2] * 10 + [3] * 4 + [4])  # 100 pictures of five kinds


def epochs(count: int, power: float, n: int = 20, start: int = 0, buckets=None, values=FAMILIES):
    """The keys of so many epochs, (epoch, position, copy) each."""
    balance = Balance(values, power, seed=3)
    keys = KeyedBatches(len(values), n, 1, 0, 1, 3, start, buckets, balance)
    updates = len(values) // n if buckets is None else keys.chunks_in_an_epoch
    return [key for batch in itertools.islice(keys, count * updates) for key in batch]


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_each_value_comes_as_often_as_its_count_and_the_power_say(power):
    sizes = np.bincount(FAMILIES)
    expected = 100 * sizes ** (1 - power) / (sizes ** (1 - power)).sum()
    keys = np.array(epochs(50, power)).reshape(50, 100, 3)
    for epoch, one in enumerate(keys):
        assert (one[:, 0] == epoch).all()
        found = np.bincount(FAMILIES[one[:, 1]], minlength=5)
        assert (abs(found - expected) < 1 + 1e-9).all()  # rounded down or up in every epoch
        rows = np.bincount(one[:, 1], minlength=100)
        assert (abs(rows - (expected / sizes)[FAMILIES]) < 1 + 1e-9).all()
        assert len(np.unique(one[:, 1:], axis=0)) == 100  # further draws of a row are copies of their own
        assert all(sorted(one[one[:, 1] == row, 2]) == list(range(count)) for row, count in enumerate(rows) if count)
    rows = np.bincount(keys[..., 1].ravel(), minlength=100)
    assert (abs(rows - 50 * (expected / sizes)[FAMILIES]) < 3).all()  # and the rows of a value take turns
    if power == 0:
        assert (rows == 50).all()


def test_balanced_batches_go_on_from_any_update_and_are_dealt_out_alike():
    whole = epochs(3, 1.0)
    assert epochs(3, 1.0, start=7)[: len(whole) - 7 * 20] == whole[7 * 20 :]
    balance = Balance(FAMILIES, 1.0, seed=3)
    parts = [iter(KeyedBatches(100, 5, 2, rank, 2, 3, 0, None, balance)) for rank in range(2)]
    dealt = []
    for _ in range(2 * 15):  # micro-steps
        dealt += [key for part in parts for key in next(part)]
    assert dealt == whole
    assert whole[:100] != whole[100:200]  # an epoch differs from the next


def test_balanced_buckets_hold_what_is_expected_and_are_as_many_in_each_epoch():
    buckets = np.arange(100) % 3
    balance = Balance(FAMILIES, 1.0, seed=3)
    keys = KeyedBatches(100, 8, 1, 0, 1, 3, 0, buckets, balance)
    chunks = {b: math.ceil(balance.expected[buckets == b].sum() / 8) for b in range(3)}
    assert keys.chunks_in_an_epoch == sum(chunks.values())
    batches = list(itertools.islice(keys, 4 * sum(chunks.values())))
    for epoch in range(4):
        mine = [batch for batch in batches if batch[0][0] == epoch]
        assert all(len({int(buckets[position]) for _, position, _ in batch}) == 1 for batch in mine)
        assert Counter(int(buckets[batch[0][1]]) for batch in mine) == chunks
        for b in range(3):
            drawn = np.array([p for batch in mine for _, p, _ in batch if buckets[p] == b])
            share = balance.expected[buckets == b] / balance.expected[buckets == b].sum() * len(drawn)
            assert (abs(np.bincount(drawn, minlength=100)[buckets == b] - share) < 1 + 1e-9).all()


def test_a_column_to_balance_must_tell_pictures_apart():
    rows = datasets.Dataset.from_dict(
        {"kind": ["a", "b", None, "a", None], "one": [1] * 5, "none": [None] * 5, "many": [["a"]] * 5}
    )

    def read(name):
        return column_to_balance(rows, TrainConfig(dataset_name="x", balance_column=name, balance_power=0.5))

    assert read("kind").tolist() == [0, 1, 2, 0, 2]  # a missing one is a value too
    for name, got in (("one", "1 alone"), ("many", r"List\(")):
        with pytest.raises(UserError, match=f"^balance_column '{name}' must hold .*: got {got}"):
            read(name)
    with pytest.raises(UserError, match="^balance_column 'none' must hold"):
        read("none")
    config = TrainConfig(dataset_name="x", balance_column="kind", balance_power=0.5)
    assert facts(rows, config) == {
        "column": "kind", "values": 3, "most_frequent": "a", "rows": 2, "weight": 2**-0.5,
    }  # fmt: skip
    with pytest.raises(UserError, match="^balance_column needs a set at hand"):
        TrainConfig(dataset_name="x", balance_column="kind", streaming=True)
