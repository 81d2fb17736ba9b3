# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Finds what a set holds and what is wrong with it, without decoding a sample. What becomes of a bad row is decided in
`dataset.py`, and what is printed of it in `plan.py`."""

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mezzotint_training.config.tasks import MODALITIES, modality, reader
from mezzotint_training.data.rows import bytes_of, cells

if TYPE_CHECKING:
    from mezzotint_training.data.dataset import CaptionedSamples

# Words of which a mirrored picture shows the opposite
SIDED = re.compile(r"\b(left|right|leftwards?|rightwards?|(anti|counter)?-?clockwise)\b", re.IGNORECASE)


class Range(NamedTuple):
    least: float
    median: float
    most: float


@dataclass
class Lint:
    """What a set holds.

    Attributes:
        use: what is in the column of samples.
        columns: of samples, and what captions are made from.
        rows: how many there are.
        dropped: a line for each row that is left out, with the reason.
        looked_at: how many pictures the rest was found from.
        measures: of samples over those rows: heights and widths of pictures.
        captions_each, caption_lengths: over those rows; lengths are in tokens.
        buckets: how many pictures each size is for.
        different_captions: how many there are.
        findings: `(what, how many rows, up to five of their numbers)` of each kind that there is.
    """

    use: str
    columns: tuple[str, ...]
    rows: int
    dropped: list[str]
    looked_at: int = 0
    measures: dict[str, Range] = field(default_factory=dict)
    buckets: dict[tuple[int, ...], int] = field(default_factory=dict)
    captions_each: Range | None = None
    caption_lengths: Range | None = None
    different_captions: int = 0
    findings: list[tuple[str, int, list[int]]] = field(default_factory=list)

    def facts(self, pictures: int, size: tuple[int, ...]) -> dict[str, Any]:
        """What was found, as plain data.

        Args:
            pictures: how many are trained on.
            size: that is trained at.
        """
        captions = list(self.columns[1:])
        ranges = self.measures | {name: getattr(self, name) for name in ("captions_each", "caption_lengths")}
        return {
            "columns": {self.use: [self.columns[0]]} | ({"caption": captions} if captions else {}),
            "rows": self.rows,
            "pictures": pictures,
            "word": MODALITIES[self.use].word,
            "looked_at": self.looked_at,
            "size": list(size),
            "dropped": list(self.dropped),
            "buckets": {"x".join(map(str, size)): count for size, count in self.buckets.items()},
            "different_captions": self.different_captions,
            "findings": [[what, count, list(where)] for what, count, where in self.findings],
            **{name: list(value) for name, value in ranges.items() if value is not None},
        }


def count_bytes(text: str) -> int:
    """The length of a text for ByT5, whose tokens are its bytes and one for its end."""
    return len(text.encode()) + 1


def lint(
    data: "CaptionedSamples",
    max_text_length: int,
    count_tokens: Callable[[str], int] = count_bytes,
    limit: int = 100_000,
) -> Lint:
    """Look at a set's captions and at the headers of its samples, of no more than `limit` rows, evenly spread.

    Args:
        data: the set, after `read_all`.
        max_text_length: tokens that the text encoder reads.
        count_tokens: of a caption.
        limit: rows to look at.
    """
    config, word = data.config, modality(data.config).word
    found = Lint(config.modality or "image", (data.column, *config.caption_column), len(data.rows), data.bad)
    chosen = data.spread(limit)
    rows, numbers = data.rows.select(chosen), data.numbers[chosen]
    kinds: dict[str, list[int]] = defaultdict(list)

    # 1. Captions
    lengths, each, different = [], [], set()
    sided: list[tuple[int, str]] = []
    read = zip(numbers.tolist(), chosen.tolist(), strict=True) if config.caption_column else ()
    for number, index in read:
        texts = data.captions[index]
        tokens = [count_tokens(text) for text in texts]
        each.append(len(texts))
        lengths += tokens
        different.update(texts)
        if not all(text.strip() for text in texts):
            kinds["an empty caption"].append(number)
        if any(not (c.isprintable() or c.isspace()) for c in "".join(texts)):
            kinds["a caption with control characters"].append(number)
        if config.random_flip and (side := next(filter(None, map(SIDED.search, texts)), None)):
            sided.append((number, side.string))
        if max(tokens) > max_text_length:
            kinds[f"a caption of more than {max_text_length} tokens, which is cut there"].append(number)

    if sided:
        example = sided[0][1] if len(sided[0][1]) <= 60 else f"{sided[0][1][:60]}..."
        kinds[f"a caption that names a side ({example!r}), untrue of the pictures that random_flip mirrors"] = [
            number for number, _ in sided
        ]

    # 2. Samples, by their headers
    measures, alike = defaultdict(list), defaultdict(list)
    for number, index, cell in zip(numbers.tolist(), chosen.tolist(), cells(rows, data.column), strict=True):
        try:
            header = reader(config).header(cell, data.about)
            length = _length(cell)
        except (ValueError, OSError):  # which decoding will find, and drop or stop at
            kinds[f"a {word} that cannot be read"].append(number)
            continue
        for name, value in header.measures.items():
            measures[name].append(value)
        alike[length, header].append((number, index))
        for finding in header.findings(data.buckets[data.bucket[index]]):
            kinds[finding].append(number)

    # 3. Equal files, looked for only among those of equal length and size
    for group in (group for group in alike.values() if len(group) > 1):
        first: dict[bytes, int] = {}
        for number, index in group:
            digest = hashlib.sha256(bytes_of(data.cells[index][data.column])).digest()
            if first.setdefault(digest, number) != number:
                kinds[f"a {word} that an earlier row has too"].append(number)

    found.looked_at = len(chosen)
    found.captions_each, found.caption_lengths = (
        Range(min(x), median(x), max(x)) if x else None for x in (each, lengths)
    )
    found.measures = {name: Range(min(x), median(x), max(x)) for name, x in measures.items()}
    counts = np.bincount(data.bucket[data.good], minlength=len(data.buckets))
    found.buckets = {size: int(count) for size, count in zip(data.buckets, counts, strict=True) if count}
    found.different_captions = len(different)
    found.findings = [(kind, len(rows), sorted(rows)[:5]) for kind, rows in kinds.items()]
    return found


def _length(cell: Any) -> int:
    """The number of bytes that a cell holds, without reading a file."""
    if not isinstance(cell, dict):
        return len(bytes_of(cell))
    return len(cell["bytes"]) if cell["bytes"] else Path(cell["path"]).stat().st_size
