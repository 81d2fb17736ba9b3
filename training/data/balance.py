# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Draws rows so that no kind of picture drowns the others: each in proportion to a power of how many share its value in
a column (`balance_column`). Which rows an update holds is decided in `batches.py`."""

from typing import Any

import datasets
import numpy as np
import pyarrow.compute as pc

from mezzotint_training.config.errors import UserError
from mezzotint_training.config.rules import shown
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.data.rows import column

# The fifth word of the keys of random numbers that belong to no item, as in `dataset.py`
OFFSET = 5
GOLDEN = (5**0.5 - 1) / 2  # of whose multiples the fractions lie evenly, however many there are


class Balance:
    """The draws of an epoch, by systematic sampling: each row and each value comes as often as is expected, rounded
    down or up, and the rows of a frequent value take turns from epoch to epoch.

    Args:
        values (`np.ndarray` of shape `(N,)`): the value of each position, as any numbers.
        power: 0 draws all rows alike, 1 all values; between, a row in proportion to the number of its value's to the
            power of `-power`.
        seed: of the run.

    Attributes:
        expected (`np.ndarray` of shape `(N,)`): draws of each position in an epoch, N in all.
    """

    def __init__(self, values: np.ndarray, power: float, seed: int):
        _, self.values, counts = np.unique(values, return_inverse=True, return_counts=True)
        weights = counts[self.values] ** -power
        self.expected, self.seed = weights * (len(weights) / weights.sum()), seed

    def draws(self, members: np.ndarray, count: int, epoch: int, part: int = 0) -> np.ndarray:
        """So many draws from some of the positions.

        Args:
            members (`np.ndarray`): the positions.
            count: how many draws, which are shared out in proportion to `expected`.
            epoch, part: whose draws they are; parts of an epoch are independent.

        Returns:
            `np.ndarray` of shape `(count, 2)`: of each draw its position, and which of this position's draws it is,
            from 0 on.
        """
        members = members[np.argsort(self.values[members], kind="stable")]
        edges = np.cumsum(self.expected[members])
        edges *= count / edges[-1]
        offset = (np.random.default_rng([self.seed, 0, part, 0, OFFSET]).random() + epoch * GOLDEN) % 1
        drawn = np.searchsorted(edges, offset + np.arange(count), side="right").clip(max=len(members) - 1)
        return np.stack([members[drawn], np.arange(count) - np.searchsorted(drawn, drawn)], axis=1)


def column_to_balance(rows: datasets.Dataset, config: TrainConfig) -> np.ndarray:
    """A number for each row, the same for rows that have the same value in `balance_column`; a missing value is one.

    Raises:
        UserError: for a column that holds lists or pictures, or one value alone.
    """
    name = str(config.balance_column)
    feature = rows.features[name]
    if not isinstance(feature, (datasets.Value, datasets.ClassLabel)):
        raise UserError(f"balance_column {name!r} must hold texts, numbers or classes: got {feature}")
    encoded = pc.dictionary_encode(column(rows, name), null_encoding="encode")
    if len(encoded.dictionary) < 2:
        found = encoded.dictionary.to_pylist()
        raise UserError(f"balance_column {name!r} must hold two or more different values: got {shown(found[0])} alone")
    return encoded.indices.to_numpy()


def facts(rows: datasets.Dataset, config: TrainConfig) -> dict[str, Any]:
    """Figures for the plan: the column to balance, the number of its values, the most frequent value and its number of
    rows, and how often a row of that is drawn beside one that has a value of its own."""
    values = column_to_balance(rows, config)
    counts = np.bincount(values)
    value = rows[int(np.argmax(values == counts.argmax()))][str(config.balance_column)]
    most = int(counts.max())
    return {
        "column": config.balance_column,
        "values": int((counts > 0).sum()),
        "most_frequent": str(value),
        "rows": most,
        "weight": most**-config.balance_power,
    }
