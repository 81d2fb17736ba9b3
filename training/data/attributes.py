# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Attributes, said of a picture beside its caption: a class (`label_column`) and numbers (`attribute_columns`), as the
network reads them. A function of a row and a key alone; which rows there are is decided elsewhere."""

from collections.abc import Mapping
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch

from mezzotint.pipelines.conditions_mezzotint import attribute_vector, attributes_without
from mezzotint_training.config.errors import UserError
from mezzotint_training.config.rules import nearest, shown
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.data.rows import check_column, column

# The fifth word of the keys of attributes, as in `dataset.py`
ATTRIBUTES = 7
LABEL = "class_labels"  # the name of the class among the attributes, and of the argument of a pipeline's call
MOST = 1000  # classes


def attribute_columns(config: TrainConfig) -> dict[str, str]:
    """The column of each attribute."""
    label = {} if config.label_column is None else {LABEL: config.label_column}
    return label | {name: name for name in config.attribute_columns}


def specification(config: TrainConfig, rows: datasets.Dataset) -> dict[str, list[Any]] | None:
    """Each attribute's classes, or the mean and the standard deviation of its numbers, over the rows at hand; `None`
    where there are no attributes.

    Raises:
        UserError: for a column that isn't there, or holds neither one nor the other.
    """
    found: dict[str, list[Any]] = {}
    for attribute, name in attribute_columns(config).items():
        flag = "label_column" if attribute == LABEL else "attribute_columns"
        check_column(flag, name, rows)
        feature, values = rows.features[name], column(rows, name)
        if attribute == LABEL:
            if isinstance(feature, datasets.ClassLabel):
                found[attribute] = list(feature.names)
            elif (
                pa.types.is_string(values.type)
                or pa.types.is_large_string(values.type)
                or pa.types.is_integer(values.type)
            ):
                found[attribute] = sorted({str(value) for value in values.to_pylist() if value is not None})
            else:
                raise UserError(f"label_column {name!r} must hold names or whole numbers: got {feature}")
            if not 2 <= len(found[attribute]) <= MOST:
                raise UserError(f"label_column {name!r} must hold 2 to {MOST} classes: got {len(found[attribute])}")
        else:
            if isinstance(feature, datasets.ClassLabel) or not (
                pa.types.is_integer(values.type)
                or pa.types.is_floating(values.type)
                or pa.types.is_boolean(values.type)
            ):
                raise UserError(f"attribute_columns {name!r} must hold numbers: got {feature}")
            numbers = values.to_numpy(zero_copy_only=False).astype(float)
            numbers = numbers[np.isfinite(numbers)]
            if len(numbers) == 0 or numbers.std() == 0:
                raise UserError(f"attribute_columns {name!r} must hold different numbers: got none or one alone")
            found[attribute] = [round(float(numbers.mean()), 6), float(f"{numbers.std():.6g}")]
    return found or None


class Attributes:
    """The attributes of rows.

    Args:
        config: the run's settings.
        known: the network's own specification of them (`specification`).
        features: of the set's columns.

    Raises:
        UserError: for a column of the run that the network does not read.
    """

    def __init__(self, config: TrainConfig, known: Mapping[str, list[Any]], features: Mapping[str, Any]):
        self.config, self.known, self.columns = config, dict(known), attribute_columns(config)
        self.names = {
            a: f.names for a, c in self.columns.items() if isinstance(f := features.get(c), datasets.ClassLabel)
        }
        if unread := [name for name in self.columns if name not in self.known]:
            raise UserError(
                f"attributes must be among those that the network reads, {', '.join(self.known) or 'none'}: got "
                f"{unread[0]}"
            )

    def vector(self, row: Mapping[str, Any]) -> torch.Tensor:
        """What the network reads of a row, all of it, of shape `(features,)`.

        Raises:
            ValueError: for a class that it does not know, in one line.
        """
        values = {attribute: self._read(attribute, row[name]) for attribute, name in self.columns.items()}
        return attribute_vector(self.known, {name: value for name, value in values.items() if value is not None})

    def _read(self, attribute: str, value: Any) -> Any:
        """The value of a cell, as `vector` has it; `None` where it is not known."""
        if value is None or isinstance(value, float) and not np.isfinite(value):
            return None
        if attribute in self.names and not 0 <= value < len(self.names[attribute]):
            return None  # -1, by which `datasets` says that there is no label
        if attribute == LABEL:
            known, names = self.known[attribute], self.names.get(attribute)
            value = str(value) if names is None else names[value]
            if value not in known:
                raise ValueError(f"label_column has a class that the network does not know: got {shown(value)}"
                                 f"{nearest(value, known)}")  # fmt: skip
        return value

    def check(self, rows: datasets.Dataset) -> None:
        """See that the network knows the classes of all `rows`.

        Raises:
            UserError: for one that it does not know, with its row.
        """
        if LABEL not in self.columns:
            return
        values = column(rows, self.columns[LABEL])
        for value in values.unique().to_pylist():
            try:
                self._read(LABEL, value)
            except ValueError as error:
                place = values.to_pylist().index(value)
                raise UserError(f"row {place}: {error}; leave rows of it out, or train a new network") from None

    def drawn(self, row: Mapping[str, Any], key: list[int]) -> torch.Tensor:
        """What it reads of a row in training: each attribute is dropped by itself, as often as
        `proportion_empty_attributes` says."""
        rng = np.random.default_rng([*key, ATTRIBUTES])
        chances = zip(sorted(self.known), rng.random(len(self.known)), strict=True)
        dropped = {name for name, chance in chances if chance < self.config.proportion_empty_attributes}
        return attributes_without(self.known, self.vector(row)[None], dropped)[0]
