# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""The captions of a row, and which of them is drawn. Each entry of `caption_column` gives a row one caption, several or
none; `rows.py` has made a column of every template."""

from collections.abc import Iterator, Sequence

import datasets

from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.data.rows import bad_captions, column
from mezzotint_training.data.templates import is_template

# The captions of a row: of each entry that gives it any, its weight and these
Choices = list[tuple[float, list[str]]]


class Captions:
    """The captions of a set's rows, as they are on disk until they are asked for.

    Args:
        rows: what `rows.held_out` returns.
        config: the run's settings.
    """

    def __init__(self, rows: datasets.Dataset, config: TrainConfig):
        self.config = config
        self.columns = [column(rows, name) for name in config.caption_column]
        self.length = len(rows)

    def __getitem__(self, index: int) -> list[str]:
        """All captions of a row, in the order of the entries."""
        return [text for _, texts in self.choices(index) for text in texts]

    def __len__(self) -> int:
        return self.length

    def choices(self, index: int) -> Choices:
        """The captions of a row by entry. Bytes that are no text are no caption; where no column is read, a row has an
        empty one."""
        if not self.columns:
            return [(1.0, [""])]
        cells = []
        for cell in (texts[index] for texts in self.columns):
            try:
                cells.append(cell.as_py())
            except UnicodeDecodeError:
                cells.append(None)
        return choices(cells, self.config)

    def bad(self) -> Iterator[tuple[int, str]]:
        """The rows without any caption, each with what is wrong with it."""
        for index, fault in bad_captions(self.columns[0]) if self.columns else ():
            if not self.choices(index):
                yield index, none_of(self.config, fault)


def choices(cells: Sequence[str | list[str] | None], config: TrainConfig) -> Choices:
    """A row's captions, from what each entry gives: a missing text, an empty list and one with a hole are none."""
    weights = config.caption_weights or [1.0] * len(cells)
    found: Choices = []
    for weight, cell in zip(weights, cells, strict=True):
        texts = cell if isinstance(cell, list) else [] if cell is None else [cell]
        if texts and None not in texts:
            found.append((weight, texts))
    return found


def drawn(found: Choices, number: float) -> str:
    """The caption that a number in [0, 1) draws: an entry by its weight, and one of its captions, each alike."""
    left = number * sum(weight for weight, _ in found)
    at = 0
    while at < len(found) - 1 and left >= found[at][0]:
        left -= found[at][0]
        at += 1
    weight, texts = found[at]
    return texts[min(int(left / weight * len(texts)), len(texts) - 1)]


def none_of(config: TrainConfig, fault: str) -> str:
    """The fault of a row without any caption, for a message: that of its only column, or that no entry gives one."""
    entries = config.caption_column
    if len(entries) == 1 and not is_template(entries[0]):
        return fault
    return f"must be text: got none from {', '.join(map(repr, entries))}"
