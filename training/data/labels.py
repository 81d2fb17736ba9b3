# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""The class of each row, by name."""

import datasets

from mezzotint_training.config.errors import UserError
from mezzotint_training.data.rows import column


def labelled(splits: datasets.DatasetDict, name: str) -> tuple[datasets.DatasetDict, list[str]]:
    """The splits with the names of their labels in the column `name`, and the names of all classes: in the order of a
    `ClassLabel`, else sorted.

    Raises:
        UserError: for a column that isn't there or holds no classes.
    """
    named, classes = {}, {}
    for split, rows in splits.items():
        if name not in rows.features:
            raise UserError(f"label_column {name!r} is not there: got columns {', '.join(map(repr, rows.features))}")
        feature, values = rows.features[name], column(rows, name).to_pylist()
        known = [value for value in values if value is not None]
        if isinstance(feature, datasets.ClassLabel):
            known, values = range(len(feature.names)), [None if value == -1 else value for value in values]
            names = dict(enumerate(feature.names))
        elif str(getattr(feature, "dtype", None)).startswith(("int", "uint", "bool", "string", "large_string")):
            names = {value: str(value) for value in known}
        else:
            raise UserError(f"label_column {name!r} must hold a ClassLabel, whole numbers or text: got {feature}")
        classes |= names
        texts = [names.get(value) for value in values]
        named[split] = rows.remove_columns(name).add_column(name, texts, feature=datasets.Value("string"))
    return datasets.DatasetDict(named), [classes[value] for value in sorted(classes)]
