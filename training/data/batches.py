# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Decides which rows an update holds, as a function of the seed and the update's number alone, and which sizes there
are. What is made of a row is decided elsewhere."""

import itertools
import math
import warnings
from collections.abc import Iterator

import numpy as np
from diffusers.training_utils import generate_aspect_ratio_buckets, parse_buckets_string

from mezzotint_training.config.errors import UserError
from mezzotint_training.config.rules import SIDE, number, shown
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.data.balance import Balance

# The fifth word of the keys of random numbers that belong to no item, as in `dataset.py`
FILL, CHUNKS = 3, 4


def size_buckets(config: TrainConfig, size: tuple[int, int], factor: int) -> list[tuple[int, int]]:
    """The sizes (height, width) of `aspect_ratio_buckets`, to one of which each picture is brought; 'auto' is eleven
    shapes from 1:2 to 2:1, of the area of `size`.

    Raises:
        UserError: for text that is no list of sizes, or a size that is no multiple of `factor`, as the U-Net must have.
    """
    text = config.aspect_ratio_buckets
    if not text:
        return [size]
    if text == "auto":
        return generate_aspect_ratio_buckets(round((size[0] * size[1]) ** 0.5), divisibility=factor)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # diffusers' rule is 8, ours stands below
            found = parse_buckets_string(text)
    except ValueError:
        raise UserError(
            f"aspect_ratio_buckets must be 'auto' or 'height,width;height,width;...': got {shown(text)}"
        ) from None
    for height, width in found:
        for side in (height, width):
            number("aspect_ratio_buckets", int, side, *SIDE)
        if height % factor or width % factor:
            raise UserError(f"aspect_ratio_buckets must be multiples of {factor} for this model: got {height},{width}")
    return found


class KeyedBatches:
    """The batches of one process from a given update on, without end, as lists of `(epoch, position)`.

    The pictures of update s are number `s * n` to `(s + 1) * n - 1` of an endless sequence of shuffled epochs, where n
    counts all micro-steps and processes: how they are dealt out does not change which they are.

    With `buckets`, all pictures of an update are of one bucket and keys are `(epoch, position, copy)`: an epoch is
    shuffled, parted by bucket and cut into chunks of n, which come in an order of their own. The last chunk of a bucket
    is filled up with further copies of its pictures, so that none is left out.

    Args:
        length: pictures in the set.
        batch_size: of one micro-step of one process.
        accumulation: micro-steps in an update.
        rank, world: this process and how many there are.
        seed: of the shuffling.
        start: the first update.
        buckets (`np.ndarray` of shape `(length,)`, *optional*): the bucket of each position.
        balance (*optional*): draws an epoch's positions, of which some come several times and some not at all, in the
            place of each once. Keys are `(epoch, position, copy)` then, too.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        accumulation: int,
        rank: int,
        world: int,
        seed: int,
        start: int,
        buckets: np.ndarray | None = None,
        balance: Balance | None = None,
    ):
        self.length, self.batch_size, self.accumulation = length, batch_size, accumulation
        self.rank, self.world, self.seed, self.start, self.buckets = rank, world, seed, start, buckets
        self.balance, self.pictures = balance, batch_size * accumulation * world  # of an update
        self.chunks_of: dict[int, int] = {}  # of each bucket, in every epoch alike
        if buckets is not None:
            expected = np.ones(length) if balance is None else balance.expected
            for bucket, count in enumerate(np.bincount(buckets, expected)):
                if count > 0:
                    self.chunks_of[bucket] = max(1, math.ceil(count / self.pictures - 1e-9))
        self.epochs: dict[int, np.ndarray] = {}  # the one or two at hand, each (places), (places, 2) or (chunks, n, 2)

    def __iter__(self) -> Iterator[list[tuple[int, ...]]]:
        n = self.pictures
        for update in itertools.count(self.start):
            for micro in range(self.accumulation):
                first = (micro * self.world + self.rank) * self.batch_size
                places = range(first, first + self.batch_size)
                if self.buckets is None:
                    found = [divmod(update * n + place, self.length) for place in places]
                    yield [(epoch, *np.atleast_1d(self.order(epoch)[place]).tolist()) for epoch, place in found]
                else:
                    epoch, number = divmod(update, self.chunks_in_an_epoch)
                    chunk = self.order(epoch)[number]
                    yield [(epoch, *chunk[place].tolist()) for place in places]

    @property
    def chunks_in_an_epoch(self) -> int:
        return sum(self.chunks_of.values())

    def order(self, epoch: int) -> np.ndarray:
        if epoch not in self.epochs:
            order = np.arange(self.length)
            if self.balance is not None and self.buckets is None:
                order = self.balance.draws(order, self.length, epoch)
            order = np.random.default_rng([self.seed, epoch]).permutation(order)
            self.epochs = {e: o for e, o in self.epochs.items() if e == epoch - 1}
            self.epochs[epoch] = order if self.buckets is None else self.chunks(epoch, order)
        return self.epochs[epoch]

    def chunks(self, epoch: int, order: np.ndarray) -> np.ndarray:
        """The epoch's chunks as an array (chunks, n, 2), whose last axis is (position, copy)."""
        n, chunks = self.pictures, []
        for bucket, times in self.chunks_of.items():
            members = order[self.buckets[order] == bucket]
            if self.balance is not None:
                draws = self.balance.draws(np.sort(members), n * times, epoch, bucket)
                shuffled = np.random.default_rng([self.seed, epoch, bucket, 0, FILL]).permutation(draws)
                chunks.append(shuffled.reshape(-1, n, 2))
                continue
            copies = np.zeros_like(members)
            fill = np.arange(-len(members) % n)
            again = np.random.default_rng([self.seed, epoch, bucket, 0, FILL]).permutation(members)
            members = np.concatenate([members, again[fill % len(again)]])
            copies = np.concatenate([copies, 1 + fill // len(again)])
            chunks.append(np.stack([members, copies], axis=1).reshape(-1, n, 2))
        return np.random.default_rng([self.seed, epoch, 0, 0, CHUNKS]).permutation(np.concatenate(chunks))
