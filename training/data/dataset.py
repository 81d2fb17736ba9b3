# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""From rows of a dataset to batches of (sample, caption, noise).

A run is a function of its seed: what happens to a sample in an epoch (its caption, whether that is dropped, its noise
and noise level) depends on (seed, epoch, row) alone, not on the batch, the worker or the process that it falls to.
Where rows come from is said in `rows.py`, which of them an update holds in `batches.py`, what is wrong with a set in
`lint.py`.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from diffusers.training_utils import find_nearest_bucket

from mezzotint_training.config.errors import UserError
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.config.tasks import TASKS, modality, reader, sample_column
from mezzotint_training.data.attributes import Attributes, attribute_columns
from mezzotint_training.data.augment import augment, turned, version_labels
from mezzotint_training.data.captions import Captions, Choices, drawn
from mezzotint_training.data.conditions import condition_of, embeds_of, sample_of
from mezzotint_training.data.rows import NUMBER, cells, column
from mezzotint_training.engine.progress import progress_bar
from mezzotint_training.modalities.contents import unit
from mezzotint_training.modalities.images import read_mask

# Samples of a set that takes no more than this are kept in memory as they were read
CACHE_BYTES = 2**31
# Pictures whose latents' scale is measured, at the most
LATENTS_MEASURED = 1000
# The fifth word of the keys of random numbers that belong to no item: those have four (seed, epoch, row, copy)
SUBSTITUTE = 2


class CaptionedSamples(torch.utils.data.Dataset):
    """Samples with captions and noise, addressed by `(epoch, position)` or `(epoch, position, copy)`.

    Args:
        rows: what `rows.held_out` returns.
        config: the run's settings.
        channels: of a sample, 1 for grey pictures, 3 for colour.
        size: of a sample, `(height, width)` of pictures, which are scaled to cover it and cropped about their centre.
        buckets: sizes from which each picture gets the one nearest to its shape, instead; see `size_buckets`. `size` is
            that of the most pictures then, once `read_all` has seen them.
        about: what is to be known of all samples to read one, as `settle` of their modality has it.
        mean, std: of each channel, in [-1, 1] units; samples are normalised with them. Set after `statistics`.

    Attributes:
        attributes: what is said of a sample beside its caption, if anything is; set after `mean` and `std`.
        latents: reads what is diffused in the place of a sample (`networks/latents.py`), if anything does.
        embeddings: reads the embedding of a row's picture (`networks/towers.py`), if anything does; with
            `embeds_scale`, their mean and standard deviation (D,).
        part: of the run's data that this is, known or held out.

    Positions count the rows that are good as far as is known before step 1. A sample that turns out bad later, under
    `on_bad_row=skip`, gives its place (its noise, too) to another of the same size, drawn by the same key: batches are
    full, and a run still is a function of its seed.

    Items are what `make_item` returns, and `bad`: a line for each bad row that was met.
    """

    def __init__(
        self,
        rows: datasets.Dataset,
        config: TrainConfig,
        channels: int,
        size: tuple[int, ...],
        buckets: Sequence[tuple[int, ...]] | None = None,
        about: Mapping[str, Any] | None = None,
    ):
        check_channels(config, channels)
        self.rows, self.config, self.channels, self.size = rows, config, channels, tuple(size)
        self.about, self.column = dict(about or {}), sample_column(config)
        self.cells = rows.select_columns(sample_columns(config))
        self.captions = Captions(rows, config)
        self.numbers = column(rows, NUMBER).to_numpy() if NUMBER in rows.column_names else np.arange(len(rows))
        self.buckets = list(buckets or [self.size])
        self.bucket = np.zeros(len(rows), dtype=np.int64)  # of each row
        self.mean, self.std = of_channels([0.0] * channels, self.size), of_channels([1.0] * channels, self.size)
        self.part, self.latents = "known", None
        self.embeddings, self.embeds_scale = None, (torch.zeros(()), torch.ones(()))
        self.attributes: Attributes | None = None
        self.columns: dict[str, pa.Array] | None = None  # of attributes, read when they are asked for
        self.faults: dict[int, str] = {}
        self.cache: list[torch.Tensor | None] | None = None
        for index, fault in self.captions.bad():
            self._bad(index, fault, of_sample=False)
        self._leave_out()

    @property
    def bad(self) -> list[str]:
        """A line for each bad row that is known to this process."""
        return list(self.faults.values())

    def _bad(self, index: int, fault: str, of_sample: bool = True) -> None:
        try:
            cell = self.cells[index][self.column]
            path = cell.get("path") if isinstance(cell, dict) else None
        except UnicodeDecodeError:  # the path itself is damaged
            path = None
        if of_sample:
            where = f"row {self.numbers[index]}{f' ({path})' if path else ''}"
            line = f"{modality(self.config).word} in {where} cannot be read: {fault}"
        else:
            line = f"caption in row {self.numbers[index]} {fault}{f' for {path}' if path else ''}"
        if self.config.on_bad_row == "stop":
            raise UserError(f"{line}; --on_bad_row skip goes on without it")
        self.faults[index] = line

    def _leave_out(self) -> None:
        self.good = np.setdiff1d(np.arange(len(self.rows)), list(self.faults))
        if len(self.good) == 0:
            raise UserError(f"no row could be read; the first: {self.bad[0]}")

    def read_all(self, progress: bool = True) -> None:
        """Give each picture its bucket, by its header; then read all samples and keep them, if the set is small enough,
        so that bad ones are known before step 1."""
        total = len(self.rows)
        if len(self.buckets) > 1:
            for index, cell in enumerate(progress_bar(cells(self.rows, self.column), "reading sizes", total, progress)):
                if index not in self.faults:
                    try:
                        header = reader(self.config).header(cell, self.about)
                    except ValueError as error:
                        self._bad(index, str(error))
                    else:
                        self.bucket[index] = find_nearest_bucket(header.height, header.width, self.buckets)
            self._leave_out()
            self.size = self.buckets[np.bincount(self.bucket[self.good]).argmax()]
        areas = np.array([np.prod(size) for size in self.buckets])
        if self.channels * areas[self.bucket[self.good]].sum() > CACHE_BYTES:
            return
        what = f"reading {modality(self.config).word}s"
        self.cache = [self.content(i) for i in progress_bar(range(total), what, total, progress)]
        self._leave_out()

    def content(self, index: int) -> torch.Tensor | None:
        """A row's sample as whole numbers (channels, *size), as `modalities/contents.py` has them, of a picture bytes
        (channels, height, width); or `None` for a bad row under `on_bad_row=skip`. For tasks with maps of classes their
        numbers are a last channel.

        Raises:
            UserError: for a bad sample under `on_bad_row=stop`, with its file or row.
        """
        if self.cache is not None:
            return self.cache[index]
        if index in self.faults:
            return None
        try:
            size = self.buckets[self.bucket[index]]
            return read_content(self.config, self.cells[index], self.channels, size, self.about)
        except ValueError as error:
            self._bad(index, str(error))

    def diffused(self, index: int) -> torch.Tensor | None:
        """What items of a row are made of: its content, or the latents of all versions of a picture (versions,
        channels, height, width), which are no whole numbers; `None`, and what is raised, as of `content`."""
        return self.content(index) if self.latents is None else self.latents.read(self, index)

    def texts(self) -> Iterator[str]:
        """All captions, those of bad rows too."""
        return (text for index in range(len(self.captions)) for text in self.captions[index])

    def spread(self, count: int) -> np.ndarray:
        """Good rows, evenly spread: `count`, or all if there are fewer."""
        return self.good[np.linspace(0, len(self.good) - 1, min(count, len(self.good))).astype(int)]

    def statistics(self, limit: int = 10_000) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel, of samples in [-1, 1], over at most `limit` of them."""
        total, square, count = torch.zeros(1), torch.zeros(1), 0
        for index in self.spread(limit if self.latents is None else min(limit, LATENTS_MEASURED)):
            found = self.diffused(int(index))
            if found is not None:
                x = found[0].double() if found.is_floating_point() else unit(found[: self.channels], torch.float64)
                axes = tuple(range(1, x.ndim))
                total, square, count = total + x.mean(axes), square + x.square().mean(axes), count + 1
        mean = total / count
        std = (square / count - mean.square()).clamp(min=1e-4 if self.latents is None else 0).sqrt()
        digits = 4 if self.latents is None or std.min() > 0.1 else 7
        return [round(v, digits) for v in mean.tolist()], [round(v, digits) for v in std.tolist()]

    def __len__(self) -> int:
        return len(self.good)

    def __getitem__(self, key: tuple[int, ...]) -> dict:
        epoch, position, copy = key if len(key) == 3 else (*key, 0)
        index = int(self.good[position])
        number, bad = int(self.numbers[index]), []
        content = self.diffused(index)
        if content is None:
            peers = self.good[self.bucket[self.good] == self.bucket[index]]
            first = np.random.default_rng([self.config.seed, epoch, number, copy, SUBSTITUTE]).integers(len(peers))
            for other in np.roll(peers, -first).tolist():
                bad.append(self.faults[index])
                index, content = other, self.diffused(other)
                if content is not None:
                    break
            else:
                raise UserError(f"no {modality(self.config).word} could be read; the first: {bad[0]}")
        captions = self.captions.choices(index)
        size = self.buckets[self.bucket[index]]
        item = make_item(self.config, epoch, number, content, captions, self.mean, self.std, copy, size) | {"bad": bad}
        if self.attributes is not None:
            item["attributes"] = self.attributes.drawn(self.said_of(index), [self.config.seed, epoch, number, copy])
        if self.embeddings is not None:
            item["embeds"] = embeds_of(self.config, self.embeds(index), [self.config.seed, epoch, number, copy])
        return item

    def embeds(self, index: int) -> torch.Tensor:
        """The embedding (D,) of a good row's picture, of unit variance over the set."""
        mean, std = self.embeds_scale
        return (self.embeddings.read(self, index).flatten() - mean) / std

    def said_of(self, index: int) -> dict[str, Any]:
        """A row's cells of the columns of attributes."""
        if self.columns is None:
            self.columns = {name: column(self.rows, name) for name in attribute_columns(self.config).values()}
        return {name: cells[index].as_py() for name, cells in self.columns.items()}


def of_channels(values: Sequence[float], size: Sequence[int]) -> torch.Tensor:
    """A number for each channel of samples of a size, of shape `(channels, 1, ...)`."""
    return torch.tensor(values).reshape(-1, *[1] * len(size))


def check_channels(config: TrainConfig, channels: int) -> None:
    """Raises:
    UserError: for a number of channels that samples cannot be read with.
    """
    possible = reader(config).CHANNELS
    if possible is not None and channels not in possible:
        kinds, word = " or ".join(map(str, possible)), modality(config).word
        raise UserError(f"the model must take {word}s of {kinds} channels: got {channels}")


def sample_columns(config: TrainConfig) -> list[str]:
    """The columns that samples are read from."""
    return [sample_column(config), *([config.mask_column] if TASKS[config.task].masks else [])]


def read_content(
    config: TrainConfig, row: dict, channels: int, size: tuple[int, ...], about: Mapping[str, Any]
) -> torch.Tensor:
    """The sample of a row's cells, as `CaptionedSamples.content` has it.

    Raises:
        ValueError: for a sample or a class map that cannot be read, in one line.
    """
    sample = reader(config).read(row[sample_column(config)], channels, size, about)
    if not TASKS[config.task].masks:
        return sample
    try:
        return torch.cat([sample, read_mask(row[config.mask_column], config.num_classes, size)])
    except ValueError as error:
        raise ValueError(f"its {config.mask_column}: {error}") from None


def make_item(
    config: TrainConfig,
    epoch: int,
    index: int,
    content: torch.Tensor,
    captions: Choices,
    mean: torch.Tensor,
    std: torch.Tensor,
    copy: int = 0,
    size: tuple[int, ...] = (0, 0),
) -> dict:
    """What is trained on in an epoch, made from a row's sample and captions: a function of (seed, epoch, index, copy)
    alone.

    Args:
        config: the run's settings.
        epoch, index: of the row.
        content (`torch.Tensor` of shape `(channels, *size)`): whole numbers; or latents of all versions of the picture
            (versions, channels, height, width), as `augment.versions` has them, which are not whole.
        captions: what `captions.choices` returns, of which one is drawn.
        mean, std (`torch.Tensor` of shape `(channels, 1, ...)`): of the data, in [-1, 1] units.
        copy: which it is of the row's appearances in this epoch, the first being 0.
        size: of the picture that latents are of.

    Returns:
        a dict of `sample` (channels, *size), `noise` of the same shape, `uniform` (a number in [0, 1)) and
        `caption`; with `augment_probability`, `augment_labels` too, and for a task that reads one, `condition`.
    """
    generator = np.random.default_rng([config.seed, epoch, index, copy])  # which for copy 0 is that of the other three
    caption, dropped, flip, uniform, seed = generator.random(5).tolist()
    version = 0
    if content.is_floating_point():  # latents, changed before they were computed
        version = 1 + int(flip * (len(content) - 1)) if len(content) > 1 else 0
    elif config.random_flip and flip < 0.5:
        content = content.flip(-1)
    sample = sample_of(config, content, mean, std, version)
    turn = None
    if config.random_turn:
        sample, turn = turned(sample, int(4 * flip))
    text = "" if dropped < config.proportion_empty_prompts else drawn(captions, caption)
    item: dict[str, Any] = {"caption": text, "uniform": uniform}
    if turn is not None:
        item["augment_labels"] = turn
    if content.is_floating_point() and config.augment_probability > 0:
        item["augment_labels"] = version_labels(config, index, version, size)
    elif config.augment_probability > 0:
        sample, item["augment_labels"] = augment(sample, generator, config.augment_probability)
    noise = torch.randn(sample.shape, generator=torch.Generator().manual_seed(int(seed * 2**53)))
    condition = condition_of(config, sample, content, [config.seed, epoch, index, copy])
    if condition is not None:
        item["condition"] = condition
    return item | {"sample": sample, "noise": noise}


def collate(items: list[dict]) -> dict:
    """A batch of items: tensors of `sample`, `noise`, `uniform` and, where there are any, `augment_labels`,
    `condition`, `attributes` and `embeds`; lists of `captions` and of `bad`, the lines on bad rows that were met."""
    names = ("sample", "noise", "augment_labels", "condition", "attributes", "embeds")
    tensors = [name for name in names if name in items[0]]
    return {
        **{name: torch.stack([item[name] for item in items]) for name in tensors},
        "uniform": torch.tensor([item["uniform"] for item in items], dtype=torch.float32),
        "captions": [item["caption"] for item in items],
        "bad": [line for item in items for line in item.get("bad", ())],
    }
